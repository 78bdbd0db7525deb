//! Modules that own what mechanisms and reducers learn: gradients, seeds, records, and that training lowers the loss.

mod common;

use burn::module::Module;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{DType, Device, Tensor};
use common::Random;
use common::learned::{apart, largest};
use common::{seeded, tensor, values};
use regard::mechanism::{Clustered, Nats};
use regard::modules::{ClusterThreshold, DeletionGate, PruneThresholds, TypeProjection};
use regard::reduce::{DeleteGate, Prune, Shown, received_score, reduce};
use regard::{Attention, AttentionLayer, AttentionLayerConfig, LayerInput, Packed, Pass, attention, penalty};
use regard_core::reduce::Tokens;

const TRAINING: Pass = Pass { training: true, seed: 11, step: 4 };

fn device() -> Device {
    Device::flex().autodiff()
}

fn normal<const D: usize>(random: &mut Random, shape: [usize; D]) -> Tensor<D> {
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| random.normal()).collect();
    tensor(&values, shape, DType::F32, &device())
}

fn near(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let (error, most) = (apart(found, expected), largest(expected));
    assert!(most > 0.0 && error <= 1e-5 * most, "{what}: {error:e} of {most:e}");
}

fn nats() -> Attention {
    Attention::causal().mechanism(Nats { window: Some(2), ..Nats::default() })
}

/// The gradient of a projection is that of its logits, which the definition in f64 vouches for, times its inputs.
#[test]
fn a_type_projection_has_the_gradient_of_its_logits() {
    let _alone = seeded(&device(), 1);
    let random = &mut Random::new(1);
    let projection = TypeProjection::new(10, 2, &device());
    let x = normal(random, [2, 17, 10]);
    let [q, k, v] = [4, 2, 2].map(|heads| normal(random, [2, heads, 17, 6]));
    let loss = |how: &Attention| {
        let o = attention(q.clone(), k.clone(), v.clone(), how).unwrap();
        o.powi_scalar(2).sum() + penalty(&q, &k, how, 3.0).unwrap()
    };
    let how = projection.attention(x.clone(), nats().pass(TRAINING)).unwrap();
    let gradients = loss(&how).backward();
    let found = values(projection.linear.weight.grad(&gradients).unwrap());

    // The same noise on logits that are a leaf.
    let logits = projection.logits(x.clone()).unwrap();
    let noisy = projection.noisy_logits(x.clone(), &nats().pass(TRAINING)).unwrap();
    assert!(largest(&values(noisy.clone() - logits)) > 0.5, "noise was added");
    let leaf = noisy.detach().require_grad();
    let of_logits = leaf.grad(&loss(&nats().pass(TRAINING).type_logits(leaf.clone())).backward()).unwrap();
    let by_token = of_logits.swap_dims(1, 2).reshape([34, 6]);
    let expected = x.inner().reshape([34, 10]).transpose().matmul(by_token);
    near("weight", &found, &values(expected));
}

/// By Gumbel's trick the share of a type over many steps is its probability.
#[test]
fn types_are_sampled_by_their_probabilities() {
    let logits = [0.3f32, -0.4, 0.9];
    let weight = Tensor::<2>::zeros([1, 3], &device());
    let linear = burn::nn::Linear {
        weight: burn::module::Param::from_tensor(weight),
        bias: Some(burn::module::Param::from_tensor(Tensor::from_floats(logits, &device()))),
    };
    let projection = TypeProjection { linear };
    let (x, mut counts, tokens) = (Tensor::<3>::zeros([1, 500, 1], &device()), [0usize; 3], 500);
    for step in 0..20 {
        let how = nats().pass(Pass { training: true, seed: 5, step });
        let noisy = values(projection.noisy_logits(x.clone(), &how).unwrap());
        noisy.chunks(3).for_each(|x| counts[(1..3).fold(0, |best, kind| if x[kind] > x[best] { kind } else { best })] += 1);
    }
    let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
    for (count, logit) in counts.into_iter().zip(logits) {
        let (share, expected) = (count as f64 / (20 * tokens) as f64, f64::from(logit).exp() / sum);
        assert!((share - expected).abs() < 0.02, "{share} of {expected}");
    }
}

fn typed_layer() -> AttentionLayer {
    device().seed(7);
    AttentionLayerConfig::new(16, 4).with_kv_heads(Some(2)).with_types(true).init(&device()).unwrap().attention(nats())
}

#[test]
fn noise_is_a_function_of_seed_and_step_and_acts_in_training_only() {
    let _alone = seeded(&device(), 3);
    let (layer, x) = (typed_layer(), normal(&mut Random::new(2), [2, 30, 16]));
    let run = |pass: Pass| values(layer.forward(LayerInput::self_attn(x.clone()).pass(pass)).unwrap());
    let still = Pass { training: false, ..TRAINING };
    assert_eq!(run(TRAINING), run(TRAINING));
    assert_eq!(run(still), run(Pass { seed: 1, step: 9, ..still }));
    for other in [Pass { step: 5, ..TRAINING }, Pass { seed: 12, ..TRAINING }, still] {
        assert!(apart(&run(TRAINING), &run(other)) > 1e-3, "{other:?}");
    }
}

/// A padded batch, and the same sequences packed: the same draws, the same output and penalty.
#[test]
fn packed_and_padded_sequences_draw_alike() {
    let _alone = seeded(&device(), 4);
    let (layer, x) = (typed_layer(), normal(&mut Random::new(3), [2, 20, 16]));
    let packed = Packed::new(x.clone().reshape([40, 16]), &[20, 20]).unwrap();
    let (padded, a) = layer.forward_with_penalty(LayerInput::self_attn(x).pass(TRAINING), 2.0).unwrap();
    let (packed, b) = layer.forward_packed_with_penalty(&packed, TRAINING, 2.0).unwrap();
    near("y", &values(packed.into_x()), &values(padded));
    assert!((values(a)[0] - values(b)[0]).abs() < 1e-6);
}

#[test]
fn records_hold_what_is_learned() {
    let _alone = seeded(&device(), 5);
    let config = AttentionLayerConfig::new(16, 4).with_types(true).with_threshold(Some(0.7));
    let (a, b) = (config.init(&device()).unwrap(), config.init(&device()).unwrap());
    let record = a.clone().into_record().into_bytes().unwrap();
    let b = b.load_record(burn::store::ModuleRecord::from_bytes(record).unwrap());
    let (ours, theirs) = (a.types.unwrap().linear.weight.val(), b.types.unwrap().linear.weight.val());
    assert_eq!(values(ours), values(theirs));
    assert_eq!(values(b.threshold.unwrap().threshold.val()), [0.7f32; 4].map(f64::from));

    let thresholds = PruneThresholds::new(Prune { threshold: 0.25.into(), ..Prune::default() }, 3, &device()).unwrap();
    let fresh = PruneThresholds::new(Prune::default(), 3, &device()).unwrap();
    assert_eq!(values(fresh.load_record(thresholds.into_record()).threshold.val()), [0.25; 3]);
    let (gate, other) = [(); 2].map(|()| DeletionGate::new(DeleteGate::default(), 6, &device()).unwrap()).into();
    let weight = values(gate.linear.weight.val());
    assert_eq!(values(other.load_record(gate.into_record()).linear.weight.val()), weight);
}

const STEPS: u64 = 150;

/// Adam on a fixed batch: the loss, penalty included, falls.
fn losses(mut layer: AttentionLayer, x: &Tensor<3>, target: &Tensor<3>, weight: f32) -> (AttentionLayer, Vec<f64>, Vec<f64>) {
    let mut optimizer = AdamConfig::new().init();
    let (mut losses, mut penalties) = (Vec::new(), Vec::new());
    for step in 0..STEPS {
        let input = LayerInput::self_attn(x.clone()).pass(Pass { training: true, seed: 1, step });
        let (y, penalty) = layer.forward_with_penalty(input, weight).unwrap();
        let loss = (y - target.clone()).powi_scalar(2).mean() + penalty.clone();
        losses.push(values(loss.clone())[0]);
        penalties.push(values(penalty)[0]);
        let gradients = GradientsParams::from_grads(loss.backward(), &layer);
        layer = optimizer.step(0.02, layer, gradients);
    }
    (layer, losses, penalties)
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

#[test]
fn a_layer_with_types_trains_and_the_penalty_makes_it_sparse() {
    let _alone = seeded(&device(), 6);
    let random = &mut Random::new(5);
    let (x, target) = (normal(random, [2, 24, 16]), normal(random, [2, 24, 16]) * 0.3);
    let (_, losses, penalties) = losses(typed_layer(), &x, &target, 2.0);
    assert!(mean(&losses[STEPS as usize - 5..]) < 0.8 * mean(&losses[..5]), "{losses:?}");
    assert!(mean(&penalties[STEPS as usize - 5..]) < 0.8 * mean(&penalties[..5]), "{penalties:?}");
}

#[test]
fn a_layer_with_thresholds_trains_towards_its_target() {
    let _alone = seeded(&device(), 9);
    let random = &mut Random::new(6);
    let clusters = Clustered { target: Some(0.5), temperature: 0.2, ..Clustered::default() };
    let layer = AttentionLayerConfig::new(16, 2).with_threshold(Some(0.3)).init(&device()).unwrap();
    let layer = layer.attention(Attention::full().mechanism(clusters));
    let (x, target) = (normal(random, [1, 40, 16]), normal(random, [1, 40, 16]) * 0.3);
    let before = values(layer.threshold.as_ref().unwrap().threshold.val());
    let (layer, losses, penalties) = losses(layer, &x, &target, 5.0);
    let after = values(layer.threshold.unwrap().threshold.val());
    assert!(mean(&losses[STEPS as usize - 5..]) < mean(&losses[..5]), "{losses:?}");
    assert!(penalties[STEPS as usize - 1] < 0.5 * penalties[0], "{penalties:?}");
    assert!(after.iter().zip(&before).all(|(after, before)| after > before), "too few clusters: thresholds rise: {after:?}");
}

#[test]
fn a_threshold_below_every_cosine_is_clipped_and_still_moves() {
    let _alone = seeded(&device(), 8);
    let module = ClusterThreshold::new(2, -1.5, &device());
    let random = &mut Random::new(8);
    let [q, k, v] = [(); 3].map(|()| normal(random, [1, 2, 12, 4]));
    let x = normal(random, [1, 12, 5]);
    let how = Attention::full().mechanism(Clustered { target: Some(0.5), ..Clustered::default() }).hidden_states(x).pass(TRAINING);
    let how = module.attention(how);
    let loss = attention(q.clone(), k.clone(), v, &how).unwrap().powi_scalar(2).sum() + penalty(&q, &k, &how, 1.0).unwrap();
    let slopes = values(module.threshold.grad(&loss.backward()).unwrap());
    assert!(slopes.iter().all(|slope| slope.abs() > 1e-9), "{slopes:?}");
}

/// The soft mask, its gradients, and what they are in the core, whose definition is in f64; hard afterwards.
#[test]
fn learned_pruning_is_soft_in_training_and_hard_afterwards() {
    let random = &mut Random::new(10);
    let options = Prune { threshold: regard_core::reduce::PerLayer::new(vec![0.6], 0.9), temperature: 0.2, protect: 1, ..Prune::default() };
    let module = PruneThresholds::new(options.clone(), 2, &device()).unwrap();
    let (x, weights) = (normal(random, [13, 6]).require_grad(), normal(random, [13, 6]));
    let scores: Vec<f64> = (0..13).map(|_| 2.0 * random.unit()).collect();
    let score = tensor::<1>(&scores, [13], DType::F32, &device()).require_grad();
    let packed = Packed::new(x.clone(), &[8, 0, 5]).unwrap();
    let soft = module.soft(packed.clone(), score.clone(), 1).unwrap();
    let floats: Vec<f32> = scores.iter().map(|&x| x as f32).collect();
    let tokens = Tokens::<f32> { score: Some(&floats), ..Tokens::new(packed.offsets()) };
    let mask = options.soft_mask(&tokens, 0.9).unwrap();
    near("mask", &values(soft.mask), &mask.iter().map(|&m| f64::from(m)).collect::<Vec<_>>());
    let share = mask.iter().sum::<f32>() / 13.0;
    assert!((values(soft.penalty.clone())[0] - f64::from(share)).abs() < 1e-6);

    let gradients = ((soft.tokens.into_x() * weights.clone()).sum() + soft.penalty * 4.0).backward();
    let products = values((x.clone().inner() * weights.clone().inner()).sum_dim(1));
    let dmask: Vec<f32> = products.iter().map(|product| (product + 4.0 / 13.0) as f32).collect();
    let (dscore, dthreshold) = options.soft_mask_backward(&mask, &dmask).unwrap();
    near("dscore", &values(score.grad(&gradients).unwrap()), &dscore.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    near("dthreshold", &values(module.threshold.grad(&gradients).unwrap()), &[0.0, f64::from(dthreshold)]);

    let reducer = module.reducer().into();
    for (layer, threshold) in [(0, 0.6f32), (1, 0.9), (2, 0.9)] {
        let shown = Shown { score: Some(score.clone()), ..Shown::default() };
        let kept = reduce(&reducer, &packed, &shown, layer).unwrap().reduction.kept().to_vec();
        let expected: Vec<usize> = (0..13).filter(|&row| [0, 8].contains(&row) || floats[row] >= threshold).collect();
        assert_eq!(kept, expected, "layer {layer}");
    }
    assert!(module.soft(packed, score, 2).is_err(), "there are two layers");
}

/// From the loss through mask and received attention to the queries.
#[test]
fn the_penalty_of_pruning_reaches_queries_and_thresholds_and_lowers_the_lengths() {
    let random = &mut Random::new(12);
    let module = PruneThresholds::new(Prune::default(), 1, &device()).unwrap();
    let tokens = Packed::new(normal(random, [20, 4]), &[20]).unwrap();
    let (q, k) = (normal(random, [1, 2, 20, 8]).require_grad(), normal(random, [1, 2, 20, 8]));
    let penalty = |module: &PruneThresholds| {
        let score = received_score(q.clone(), k.clone(), &Attention::full()).unwrap().squeeze_dim::<1>(0);
        module.soft(tokens.clone(), score, 0).unwrap().penalty
    };
    let loss = penalty(&module);
    let gradients = loss.clone().backward();
    assert!(largest(&values(q.grad(&gradients).unwrap())) > 1e-4);
    let gradients = GradientsParams::from_grads(gradients, &module);
    let module = AdamConfig::new().init().step(0.05, module, gradients);
    assert!(values(penalty(&module))[0] < values(loss)[0]);
}

#[test]
fn a_deletion_gate_is_a_bias_in_training_and_deletes_afterwards() {
    let random = &mut Random::new(14);
    let options = DeleteGate { layer: 0, protect: 1, ..DeleteGate::default() };
    let _alone = seeded(&device(), 3);
    let gate = DeletionGate::new(options.clone(), 6, &device()).unwrap();
    let x = normal(random, [11, 6]).require_grad();
    let tokens = Packed::new(x.clone(), &[7, 4]).unwrap();
    let gates = gate.gates(&tokens).unwrap();

    // A logit is a linear map of a token without mean and of variance 1.
    let (weight, bias) = (values(gate.linear.weight.val()), values(gate.linear.bias.as_ref().unwrap().val())[0]);
    let logit = |row: &[f64]| {
        let mean = row.iter().sum::<f64>() / 6.0;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 6.0;
        bias + row.iter().zip(&weight).map(|(x, w)| (x - mean) / (variance + 1e-5).sqrt() * w).sum::<f64>()
    };
    let logits: Vec<f64> = values(x.clone()).chunks(6).map(logit).collect();
    near("logits", &values(gates.logits.clone()), &logits);
    let floats: Vec<f32> = logits.iter().map(|&x| x as f32).collect();
    let open = options.gates(&Tokens::<f32> { gate_logits: Some(&floats), ..Tokens::new(tokens.offsets()) }).unwrap();
    near("gates", &values(gates.open.clone()), &open.iter().map(|&g| f64::from(g)).collect::<Vec<_>>());

    // What later layers lose with it passes its gradient on.
    let [q, k, v] = [(); 3].map(|()| normal(random, [1, 2, 11, 4]));
    let how = tokens.attention(Attention::full().key_bias(gates.key_bias(2)));
    let gradients = (attention(q, k, v, &how).unwrap().powi_scalar(2).sum() + gates.open.clone().mean()).backward();
    let found = gate.linear.weight.grad(&gradients).map(|x| largest(&values(x)));
    assert!(found.is_some_and(|found| found > 1e-6), "{found:?}");
    assert!(largest(&values(gate.norm.gamma.grad(&gradients).unwrap())) > 1e-6);

    let shown = Shown { gate_logits: Some(gates.logits), ..Shown::default() };
    let reduced = reduce(&gate.reducer().into(), &tokens, &shown, 0).unwrap();
    let expected: Vec<usize> = (0..11).filter(|&row| [0, 7].contains(&row) || logits[row] >= 0.0).collect();
    assert_eq!(reduced.reduction.kept(), expected);
}

/// The slope of a loss of the gates by the map's weights, by differences in f64.
#[test]
fn gates_have_the_gradient_of_their_formula() {
    let _alone = seeded(&device(), 12);
    let random = &mut Random::new(16);
    let gate = DeletionGate::new(DeleteGate { k: -3.0, ..DeleteGate::default() }, 5, &device()).unwrap();
    let (x, weights) = (normal(random, [9, 5]), normal(random, [9]));
    let loss = (gate.gates(&Packed::new(x.clone(), &[9]).unwrap()).unwrap().open * weights.clone()).sum();
    let found = values(gate.linear.weight.grad(&loss.backward()).unwrap());
    let (weight, bias) = (values(gate.linear.weight.val()), values(gate.linear.bias.as_ref().unwrap().val())[0]);
    let (x, weights) = (values(x), values(weights));
    let by_weight = |weight: &[f64]| -> f64 {
        let of = |(row, factor): (&[f64], &f64)| {
            let mean = row.iter().sum::<f64>() / 5.0;
            let deviation = (row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 5.0 + 1e-5).sqrt();
            let logit = bias + row.iter().zip(weight).map(|(x, w)| (x - mean) / deviation * w).sum::<f64>();
            factor * -3.0 / (1.0 + logit.exp())
        };
        x.chunks(5).zip(&weights).map(of).sum()
    };
    let slope = |at: usize| {
        let moved = |step: f64| {
            let mut weight = weight.clone();
            weight[at] += step;
            by_weight(&weight)
        };
        (moved(1e-5) - moved(-1e-5)) / 2e-5
    };
    near("weight", &found, &(0..5).map(slope).collect::<Vec<_>>());
}

#[test]
fn what_learns_nothing_has_no_penalty() {
    let q = Tensor::<4>::zeros([1, 2, 5, 4], &device());
    let refusal = |how: &Attention| penalty(&q, &q, how, 1.0).expect_err("it was taken").to_string();
    assert_eq!(refusal(&Attention::causal()), "this mechanism learns nothing that a penalty could steer");
    let clusters = Attention::full().mechanism(Clustered::default()).hidden_states(Tensor::zeros([1, 5, 3], &device()));
    assert_eq!(refusal(&clusters), "the penalty needs a target and thresholds of the heads");
}
