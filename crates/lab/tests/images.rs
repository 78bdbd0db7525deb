//! `images`: three formats, patches, and files that are not what they should be.

mod common;

use common::{all, class, data, example, folder, open, refusal, rows};
use regard_lab::task::{Inputs, Split, Targets};
use std::collections::HashSet;

/// Pixels of so many images of 6 x 4, all different.
fn pixels(count: usize) -> Vec<u8> {
    (0..count * 24).map(|at| (at * 37 % 253) as u8 ^ (at / 24) as u8).collect()
}

fn idx(sizes: &[u32], bytes: &[u8]) -> Vec<u8> {
    let head = [0, 0, 8, sizes.len() as u8];
    [&head[..], &sizes.iter().flat_map(|size| size.to_be_bytes()).collect::<Vec<_>>(), bytes].concat()
}

fn labels(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at % 3) as u8).collect()
}

#[test]
fn patches_hold_every_pixel_once() {
    let count = 40;
    let (images, classes) = (idx(&[40, 6, 4], &pixels(count)), idx(&[40], &labels(count)));
    let folder = folder(&[("images", &images), ("labels", &classes)]);
    let yaml = "{name: images, train: images, train_labels: labels, test: images, test_labels: labels, patch: 2}";
    let task = open(folder.path(), yaml);
    let facts = task.facts();
    assert_eq!((facts.inputs, facts.targets, facts.longest), (Inputs::Rows { width: 4 }, Targets::Classes(3), 6));
    let trained: Vec<f32> = all(&*task, Split::Train).iter().flat_map(|image| rows(image).to_vec()).collect();
    let mean = trained.iter().sum::<f32>() / trained.len() as f32;
    let square = trained.iter().map(|value| value * value).sum::<f32>() / trained.len() as f32;
    assert!(mean.abs() < 1e-5 && (square - 1.0).abs() < 1e-5, "train has mean 0 and deviation 1: {mean} {square}");
    let pixels = pixels(count);
    // Two pixels of known value say what mean and deviation are.
    let at = |image: usize, row: usize, column: usize| f64::from(pixels[image * 24 + row * 4 + column]);
    let test = all(&*task, Split::Test);
    let first = rows(&test[0]);
    let deviation = (at(0, 0, 1) - at(0, 0, 0)) / f64::from(first[1] - first[0]);
    let mean = at(0, 0, 0) - deviation * f64::from(first[0]);
    for (image, found) in test.iter().enumerate() {
        assert_eq!(class(found), (image % 3) as u32);
        for (place, value) in rows(found).iter().enumerate() {
            let (patch, within) = (place / 4, place % 4);
            let due = (at(image, patch / 2 * 2 + within / 2, patch % 2 * 2 + within % 2) - mean) / deviation;
            assert!((f64::from(*value) - due).abs() < 1e-4, "image {image}, feature {place}: {value}, {due}");
        }
    }
}

#[test]
fn a_picture_is_in_one_split() {
    let doubled = [pixels(30), pixels(30)].concat();
    let folder = folder(&[("images", &idx(&[60, 6, 4], &doubled)), ("labels", &idx(&[60], &labels(60)))]);
    let task = open(folder.path(), "{name: images, train: images, train_labels: labels, patch: 2, splits: [0.5, 0.25, 0.25]}");
    let sets = Split::ALL.map(|split| all(&*task, split).iter().map(|image| format!("{:?}", rows(image))).collect::<HashSet<_>>());
    assert_eq!(sets.iter().map(HashSet::len).sum::<usize>(), 30, "30 pictures, each in one split");
    assert_eq!(task.facts().sizes.map(|size| size.expect("it ends")).iter().sum::<u64>(), 60);
}

#[test]
fn colours_of_a_pixel_lie_together() {
    let record = |label: u8, colours: [u8; 3]| [vec![label], colours.iter().flat_map(|colour| vec![*colour; 1024]).collect()].concat();
    let records: Vec<u8> = (0..20).flat_map(|at| record(at % 2, [at, 100 + 2 * at, 255 - at])).collect();
    let folder = folder(&[("a.bin", &records), ("classes.txt", b"cat\ndog\n")]);
    let task = open(folder.path(), "{name: images, format: cifar10, train: a.bin, test: a.bin, classes: classes.txt, patch: 8}");
    assert_eq!((task.facts().inputs, task.facts().longest), (Inputs::Rows { width: 192 }, 16));
    assert_eq!(task.facts().balance.iter().map(|label| label.name.as_str()).collect::<Vec<_>>(), ["cat", "dog"]);
    let found = all(&*task, Split::Test);
    for (number, image) in found.iter().enumerate() {
        let values = rows(image);
        assert!(values.chunks(3).all(|pixel| pixel == &values[..3]));
        // Red and green rise together, blue falls.
        assert!((values[0] - values[1]).abs() < 1e-5 && (values[0] + values[2]).abs() < 1e-5, "image {number}: {:?}", &values[..3]);
    }
    assert!(rows(&found[0])[0] < rows(&found[19])[0]);
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let (images, classes) = (idx(&[10, 6, 4], &pixels(10)), idx(&[10], &labels(10)));
    let files: [(&str, &[u8]); 9] = [
        ("eleven.bin", &[vec![3; 3073], vec![11; 3073]].concat()),
        ("images", &images),
        ("labels", &classes),
        ("cut", &images[..200]),
        ("few", &idx(&[9], &labels(9))),
        ("zipped", b"\x1f\x8b\x08 and so on, and so on"),
        ("huge", &idx(&[u32::MAX, u32::MAX, u32::MAX], b"")),
        ("odd.bin", &[0; 4000]),
        ("names", b"one\n"),
    ];
    let folder = folder(&files);
    for (name, text) in [
        ("a.csv", "1,2,3,4,0\n1,2,3,x,0\n"),
        ("b.csv", "1,2,3,4,0\n1,2,256,4,0\n"),
        ("c.csv", "1,2,3,0\n"),
        ("d.csv", "1,2,3,4,0\n1,2,3,4\n"),
    ] {
        std::fs::write(folder.path().join(name), text).expect("it is written");
    }
    for (keys, message) in [
        ("train: images", "task.train_labels: is missing; idx has labels in a file of their own (train_labels, test_labels)"),
        (
            "train: labels, train_labels: images",
            "labels: header: is not that of an IDX file of bytes in 3 dimensions; are images and labels mixed up?",
        ),
        ("train: cut, train_labels: labels", "cut: header: says [10, 6, 4], which does not go with a file of 200 bytes"),
        (
            "train: huge, train_labels: labels",
            "huge: header: says [4294967295, 4294967295, 4294967295], which does not go with a file of 16 bytes",
        ),
        ("train: zipped, train_labels: labels", "zipped: header: is compressed; decompress it first, such as with gunzip"),
        ("train: images, train_labels: few", "few: header: has 9 labels, images has 10 images"),
        ("train: images, train_labels: labels, patch: 4", "task.patch: is 4; it divides both sides of an image of 6 x 4"),
        ("train: images, train_labels: labels, patch: 0", "task.patch: is 0; it divides both sides of an image of 6 x 4"),
        ("train: images, train_labels: labels, patch: 2, classes: names", "task.classes: names 1 classes, labels go from 0 to 2"),
        ("format: cifar10, train: odd.bin", "odd.bin: size: 4000 bytes are not records of 3073 (a label and 3 x 32 x 32 pixels)"),
        (
            "format: cifar10, train: odd.bin, train_labels: labels",
            "task.train_labels: is for idx; other formats have labels beside the pixels",
        ),
        ("format: cifar10, train: eleven.bin", "eleven.bin: record 2: the label is 11, it is below 10"),
        ("format: csv, train: a.csv", "a.csv: line 2, column 4: \"x\" is not a number"),
        ("format: csv, train: b.csv", "b.csv: line 2, column 3: 256 is not a whole number of 0 to 255"),
        ("format: csv, train: c.csv", "c.csv: line 1: 3 pixels and a label were expected to be a square image"),
        ("format: csv, train: d.csv", "d.csv: line 2: has 4 columns, the first row has 5; a comma within a text needs quotes around it"),
    ] {
        assert_eq!(refusal(folder.path(), &format!("{{name: images, {keys}}}")), message);
    }
}

#[test]
fn real_images() {
    let Some(base) = data("digits/digits.csv") else { return };
    let task = open(&base, "{name: images, format: csv, train: digits/digits.csv, patch: 2}");
    let facts = task.facts();
    assert_eq!((facts.inputs, facts.longest), (Inputs::Rows { width: 4 }, 16));
    let counts: Vec<u64> = facts.balance.iter().map(|label| label.counts.iter().sum()).collect();
    assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    assert_eq!(facts.fingerprint, "dc44e459ba465aa9");

    let Some(base) = data("mnist/t10k-images-idx3-ubyte") else { return };
    let task = open(&base, "{name: images, train: mnist/t10k-images-idx3-ubyte, train_labels: mnist/t10k-labels-idx1-ubyte, patch: 4}");
    let facts = task.facts();
    let counts: Vec<u64> = facts.balance.iter().map(|label| label.counts.iter().sum()).collect();
    assert_eq!(counts, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]);
    assert_eq!((facts.inputs, facts.longest, facts.fingerprint.as_str()), (Inputs::Rows { width: 16 }, 49, "22026f73c85c0f98"));

    let Some(base) = data("cifar10/train_5000.bin") else { return };
    let keys = "train: cifar10/train_5000.bin, test: cifar10/test_1000.bin, classes: cifar10/classes.txt";
    let task = open(&base, &format!("{{name: images, format: cifar10, {keys}, patch: 4}}"));
    let facts = task.facts();
    assert!(facts.balance.iter().all(|label| label.counts[0] + label.counts[1] == 500 && label.counts[2] == 100), "{facts}");
    assert_eq!((facts.floor, facts.inputs, facts.longest), (Some(0.1), Inputs::Rows { width: 48 }, 64));
    assert_eq!(facts.balance[0].name, "airplane");
    assert_eq!(facts.fingerprint, "889dd080442bd22e");
    example(&*task, Split::Test, 999);
}
