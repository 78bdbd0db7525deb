use super::*;

struct Functions;

impl Task for Functions {
    type Output = ();

    fn run<S: Lanes, const R: usize>(self, s: S) {
        let lane = |x: S::F| {
            let mut out = [0.0f32; 16];
            s.store(&mut out, x);
            out[0]
        };
        for i in -12_800..12_800 {
            let x = i as f32 * 0.0117;
            let exact = f64::from(x).exp2();
            if exact > 1e-37 && exact < 3e38 {
                let error = (f64::from(lane(s.exp2(s.splat(x)))) / exact - 1.0).abs();
                assert!(error < 1.7e-7, "2^{x}: {error:e}");
            }
            let z = x * 0.58;
            let (found, exact) = (f64::from(lane(s.exp(s.splat(z)))), f64::from(z).exp());
            if z.abs() < 87.0 {
                let error = (found / exact - 1.0).abs();
                assert!(error < 1.7e-7 + f64::from(z.abs()) * 8e-8, "e^{z}: {error:e}");
            }
            assert!(z > -88.0 || found == 0.0, "e^{z}: {found:e}");
            let y = x * 0.05;
            let error = (f64::from(lane(s.tanh(s.splat(y)))) - f64::from(y).tanh()).abs();
            assert!(error <= 8e-7 * f64::from(y).tanh().abs() + 1e-30, "tanh {y}: {error:e}");
        }
        assert_eq!(lane(s.exp2(s.splat(f32::NEG_INFINITY))), 0.0);
        assert_eq!(lane(s.exp2(s.splat(-1e9))), 0.0);
        assert_eq!(lane(s.exp2(s.splat(1e9))), f32::INFINITY);
        assert!(lane(s.exp2(s.splat(f32::NAN))).is_nan());
        assert_eq!([0.0, f32::NEG_INFINITY].map(|x| lane(s.exp(s.splat(x)))), [1.0, 0.0]);
        assert!(lane(s.exp(s.splat(f32::NAN))).is_nan());
        assert!(s.any_not_at_most(s.splat(f32::NAN), s.splat(1.0)));
        assert_eq!(s.sum(s.splat(0.5)), 0.5 * S::N as f32);
    }
}

struct Transposed;

impl Task for Transposed {
    type Output = ();

    fn run<S: Lanes, const R: usize>(self, s: S) {
        let from: Vec<f32> = (0..S::N * 20).map(|i| i as f32).collect();
        let mut into = vec![0.0; S::N * 18];
        s.transpose(&from, 20, &mut into, 18, Some(2.0));
        for row in 0..S::N {
            for column in 0..S::N {
                assert_eq!(into[column * 18 + row], 2.0 * from[row * 20 + column]);
            }
        }
    }
}

struct Sums;

impl Task for Sums {
    type Output = ();

    fn run<S: Lanes, const R: usize>(self, s: S) {
        // Whole numbers add up without rounding, in any order.
        let rows: Vec<f32> = (0..S::N * S::N).map(|i| (i * i % 1009) as f32).collect();
        let mut sums = [0.0; MOST_LANES];
        let mut registers = [s.zero(); MOST_LANES];
        for (register, row) in registers.iter_mut().zip(rows.chunks_exact(S::N)) {
            *register = s.load(row);
        }
        s.store(&mut sums, s.sums(&registers));
        for (row, (sum, values)) in sums.iter().zip(rows.chunks_exact(S::N)).enumerate() {
            assert_eq!(*sum, values.iter().sum::<f32>(), "row {row}");
        }
    }
}

struct Stored;

impl Task for Stored {
    type Output = ();

    fn run<S: Lanes, const R: usize>(self, s: S) {
        let mut x = [0.0f32; 16];
        for round in 0..40_000u32 {
            for (i, x) in x.iter_mut().enumerate() {
                *x = f32::from_bits((round * 16 + i as u32).wrapping_mul(0x9e37_79b9).rotate_left(round % 32));
            }
            let (mut b, mut h) = ([bf16::ZERO; 16], [f16::ZERO; 16]);
            s.store_bf16(&mut b, s.load(&x));
            s.store_f16(&mut h, s.load(&x));
            let mut inverse = [0.0f32; 16];
            s.store(&mut inverse, s.reciprocal(s.load(&x)));
            let (mut swapped, mut magnitude) = ([0.0f32; 16], [0.0f32; 16]);
            s.store(&mut magnitude, s.abs(s.load(&x)));
            s.store(&mut swapped, s.swap_pairs(s.load(&x)));
            let double: [bf16; 32] =
                std::array::from_fn(|i| bf16::from_bits((round as u16).wrapping_mul(31).wrapping_add(i as u16 * 2048)));
            let mut back = [bf16::ZERO; 32];
            s.store_two_bf16(&mut back, s.load_two_bf16(&double));
            for (back, double) in back.iter().zip(&double).take(2 * S::N) {
                assert!(back.to_bits() == double.to_bits() || (back.is_nan() && double.is_nan()), "{back} for {double}");
            }
            let mut twice = [bf16::ZERO; 32];
            s.store_two_bf16(&mut twice, [s.load(&x), s.load(&x)]);
            let sorted = |of: &[bf16]| -> Vec<u16> {
                let mut bits: Vec<u16> = of.iter().map(|b| if b.is_nan() { 0x7fc0 } else { b.to_bits() }).collect();
                bits.sort_unstable();
                bits
            };
            assert_eq!(sorted(&twice[..2 * S::N]), sorted(&[&b[..S::N], &b[..S::N]].concat()));
            let mut less = [0.0f32; 16];
            s.store(&mut less, s.mul_sub(s.splat(3.0), s.splat(0.25), s.load(&x)));
            for i in 0..S::N {
                assert!(less[i] == x[i] - 0.75 || less[i].is_nan() && x[i].is_nan());
                let b_expected = bf16::from_f32(x[i]);
                assert!(b[i].to_bits() == b_expected.to_bits() || (b[i].is_nan() && b_expected.is_nan()), "bf16 of {:e}", x[i]);
                assert_eq!(magnitude[i].to_bits(), x[i].abs().to_bits());
                let h_expected = f16::from_f32(x[i]);
                assert!(h[i].to_bits() == h_expected.to_bits() || (h[i].is_nan() && h_expected.is_nan()), "f16 of {:e}", x[i]);
                assert_eq!(swapped[i].to_bits(), x[i ^ 1].to_bits());
                if x[i].abs() > 2.4e-38 && x[i].abs() < 4.2e37 {
                    let error = (f64::from(inverse[i]) * f64::from(x[i]) - 1.0).abs();
                    assert!(error < 1.3e-7, "1 / {:e}: {error:e}", x[i]);
                }
            }
        }
    }
}

struct Parts;

impl Task for Parts {
    type Output = ();

    fn run<S: Lanes, const R: usize>(self, s: S) {
        let x: [f32; 16] = std::array::from_fn(|i| 1.0 + i as f32);
        let halves = x.map(bf16::from_f32);
        for count in 0..S::N {
            let (mut read, mut read_halves) = ([0.0f32; 16], [0.0f32; 16]);
            s.store(&mut read, s.load_part(&x[..count], -0.5));
            s.store(&mut read_halves, s.load_part_bf16(&halves[..count], -0.5));
            let (mut to, mut to_halves) = ([7.0f32; 16], [bf16::ONE; 16]);
            s.store_part(&mut to[..count], s.load(&x));
            s.store_part_bf16(&mut to_halves[..count], s.load(&x));
            for i in 0..S::N {
                let (inside, filled) = (i < count, if i < count { x[i] } else { -0.5 });
                assert_eq!([read[i], read_halves[i]], [filled; 2], "lane {i} of {count}");
                assert_eq!(to[i], if inside { x[i] } else { 7.0 }, "lane {i} of {count}");
                assert_eq!(to_halves[i].to_f32(), if inside { x[i] } else { 1.0 }, "lane {i} of {count}");
            }
        }
    }
}

struct Largest;

impl Task for Largest {
    type Output = ();

    fn run<S: Lanes, const R: usize>(self, s: S) {
        let drawn = |i: u32| bf16::from_bits((i.wrapping_mul(0x9e37_79b9) >> 16) as u16);
        for seed in 0..2000u32 {
            // Of both signs, or all negative, and some of no elements, of a part of a register and of several.
            let values = (0..seed % 200).map(|i| drawn(seed * 200 + i)).filter(|x| !x.is_nan());
            let values: Vec<bf16> = values.map(|x| if seed % 3 == 0 { bf16::from_bits(x.to_bits() | 0x8000) } else { x }).collect();
            let expected = values.iter().fold(f32::NEG_INFINITY, |most, x| most.max(x.to_f32()));
            if let Some(found) = s.largest_bf16(&values) {
                assert_eq!(found, expected, "{values:?}");
            }
        }
    }
}

struct Paired;

impl Task for Paired {
    type Output = ();

    fn run<S: Lanes, const R: usize>(self, s: S) {
        let drawn = |seed: u32| -> [f32; 16] {
            std::array::from_fn(|i| (seed.wrapping_mul(0x9e37_79b9).wrapping_add(i as u32 * 0x85eb_ca6b) as i32 as f32) * 1e-9)
        };
        let read = |x: S::F| {
            let mut out = [0.0f32; 16];
            s.store(&mut out, x);
            out
        };
        for seed in 0..1000 {
            let [a, b, c, d, sum] = [0, 1, 2, 3, 4].map(|i| drawn(seed * 5 + i));
            let (left, right) = (s.pair([s.load(&a), s.load(&b)]), s.pair([s.load(&c), s.load(&d)]));
            let [first, second] = s.unpair(left);
            let (first, second, dots) = (read(first), read(second), read(s.dot_pairs(left, right, s.load(&sum))));
            for i in 0..S::N {
                let [a, b, c, d] = [a[i], b[i], c[i], d[i]].map(|x| bf16::from_f32(x).to_f32());
                assert_eq!([first[i], second[i]], [a, b]);
                assert_eq!(read(left)[i].to_bits(), pair_of(bf16::from_f32(a), bf16::from_f32(b)).to_bits());
                let exact = f64::from(sum[i]) + f64::from(a) * f64::from(c) + f64::from(b) * f64::from(d);
                let largest = sum[i].abs().max((a * c).abs()).max((b * d).abs());
                assert!((f64::from(dots[i]) - exact).abs() <= 4e-7 * f64::from(largest), "{} for {exact}", dots[i]);
            }
        }
        assert!(read(s.pair([s.splat(f32::NAN), s.zero()]))[0].to_bits() as u16 & 0x7fff > 0x7f80);
    }
}

#[test]
fn every_level_computes_the_same_functions() {
    for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
        dispatch(level, Functions);
        dispatch(level, Transposed);
        dispatch(level, Sums);
        dispatch(level, Stored);
        dispatch(level, Parts);
        dispatch(level, Largest);
        Pairs::dispatch(level, Stored);
        Pairs::dispatch(level, Parts);
        dispatch(level, Paired);
        Pairs::dispatch(level, Paired);
    }
}

#[test]
fn levels_have_names() {
    for level in Level::ALL {
        assert_eq!(level.name().parse(), Ok(level));
    }
    assert!("sse9".parse::<Level>().is_err());
}
