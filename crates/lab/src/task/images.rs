//! Classes of images, each a sequence of patches.
//!
//! Three formats: IDX (MNIST and its kin: a file of images, a file of labels), the binary CIFAR-10 records (a label, then the planes
//! red, green and blue of 32 × 32), and CSV of whole numbers (pixels row by row, then the label; no header; square images). Pixels are
//! divided into patches of `patch` × `patch`, in raster order; a position's features are its pixels in raster order, the colours
//! of a pixel together. Every colour is shifted and scaled by its mean and standard deviation over train. Without files of their own,
//! validation and test are shares by a hash of (seed, pixels): the same picture is never in two of them. Images stay on disk.

use super::delimited::{Delimited, Layout};
use super::digest::Digest;
use super::file::{Places, Spill};
use super::open::{Source, open};
use super::shares::{Shares, TEST_IS_VALIDATION};
use super::{Example, Facts, Input, Inputs, Label, Metric, Split, Target, Targets, Task};
use crate::Error;
use crate::draw::mix;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a file of images is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Images in one file, labels in another.
    #[default]
    Idx,
    /// Records of a label and 3 × 32 × 32 bytes.
    Cifar10,
    /// Numbers and a label a line.
    Csv,
}

/// Keys of `images`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Images {
    /// `idx`, `cifar10` or `csv`.
    pub format: Format,
    /// The file to learn from. Must be there.
    pub train: PathBuf,
    /// Labels of `train`, with `idx`.
    pub train_labels: Option<PathBuf>,
    /// A file for the test; null for a share of `train`.
    pub test: Option<PathBuf>,
    /// Labels of `test`, with `idx`.
    pub test_labels: Option<PathBuf>,
    /// Names of the classes, a line each; null for their numbers.
    pub classes: Option<PathBuf>,
    /// Pixels of a patch's side, which divides the image's sides.
    pub patch: usize,
    /// Shares of train, validation and test; null for 0.8, 0.1, 0.1, or 0.9, 0.1, 0 with a test file.
    pub splits: Option<[f64; 3]>,
    /// Another seed, other shares.
    pub seed: u64,
}

impl Default for Images {
    fn default() -> Self {
        let (train, train_labels, test, test_labels, classes) = (PathBuf::new(), None, None, None, None);
        Images { format: Format::Idx, train, train_labels, test, test_labels, classes, patch: 4, splits: None, seed: 0 }
    }
}

/// Images of one file: bytes at fixed places.
struct Album {
    pixels: Run,
    labels: Run,
    count: u64,
    shape: Shape,
    /// Labels that the format has.
    classes: u16,
}

/// Records of a file.
struct Run {
    file: Arc<Places>,
    first: u64,
    step: u64,
}

/// Planes of colours, rows and columns of an image.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    colours: usize,
    height: usize,
    width: usize,
}

impl Shape {
    fn bytes(&self) -> usize {
        self.colours * self.height * self.width
    }

    fn plane(&self) -> usize {
        self.height * self.width
    }
}

impl Run {
    fn read(&self, index: u64, count: usize) -> Result<Vec<u8>, Error> {
        self.file.read(self.first + index * self.step, count)
    }
}

impl Album {
    fn open(format: Format, path: &Path, labels: Option<&Path>) -> Result<Self, Error> {
        match (format, labels) {
            (Format::Idx, Some(labels)) => Album::idx(path, labels),
            (Format::Idx, None) => {
                Err(Error::key("task.train_labels", "is missing; idx has labels in a file of their own (train_labels, test_labels)"))
            }
            (_, Some(_)) => Err(Error::key("task.train_labels", "is for idx; other formats have labels beside the pixels")),
            (Format::Cifar10, None) => Album::cifar(path),
            (Format::Csv, None) => Album::csv(path),
        }
    }

    fn idx(path: &Path, labels: &Path) -> Result<Self, Error> {
        let (images, [count, height, width]) = header(path)?;
        let (classes, [named]) = header(labels)?;
        if named != count {
            return Err(Error::data(labels, "header", format!("has {named} labels, {} has {count} images", path.display())));
        }
        let shape = Shape { colours: 1, height: height as usize, width: width as usize };
        let pixels = Run { file: Arc::new(images), first: 16, step: height * width };
        Ok(Album { pixels, labels: Run { file: Arc::new(classes), first: 8, step: 1 }, count, shape, classes: 256 })
    }

    fn cifar(path: &Path) -> Result<Self, Error> {
        let shape = Shape { colours: 3, height: 32, width: 32 };
        let file = Places::open(path)?;
        let (size, step) = (file.size()?, 1 + shape.bytes() as u64);
        if size == 0 || !size.is_multiple_of(step) {
            return Err(Error::data(path, "size", format!("{size} bytes are not records of {step} (a label and 3 x 32 x 32 pixels)")));
        }
        Ok(Album { classes: 10, ..Album::records(Arc::new(file), size / step, shape) })
    }

    fn csv(path: &Path) -> Result<Self, Error> {
        let table = Delimited::open(path, Layout { tabs: false, header: false, limit: 1 << 24 })?;
        let pixels = table.columns() - 1;
        let side = pixels.isqrt();
        if pixels == 0 || side * side != pixels {
            return Err(Error::data(path, "line 1", format!("{pixels} pixels and a label were expected to be a square image")));
        }
        let mut spill = Spill::new()?;
        let byte = |row: &_, column: usize| {
            let number = table.number(row, column)?;
            let place = || format!("{}, column {}", row.place(), column + 1);
            let whole = (0.0..=255.0).contains(&number) && number.fract() == 0.0;
            if whole { Ok(number as u8) } else { Err(Error::data(path, place(), format!("{number} is not a whole number of 0 to 255"))) }
        };
        table.scan(&mut |row| {
            let label = byte(row, pixels)?;
            let mut record = vec![label];
            (0..pixels).try_for_each(|column| byte(row, column).map(|pixel| record.push(pixel)))?;
            spill.write(&record)
        })?;
        let count = spill.written() / (pixels as u64 + 1);
        Ok(Album::records(Arc::new(spill.finish()?), count, Shape { colours: 1, height: side, width: side }))
    }

    /// A label, then pixels.
    fn records(file: Arc<Places>, count: u64, shape: Shape) -> Self {
        let step = 1 + shape.bytes() as u64;
        Album { pixels: Run { file: Arc::clone(&file), first: 1, step }, labels: Run { file, first: 0, step }, count, shape, classes: 256 }
    }

    fn label(&self, index: u64) -> Result<u8, Error> {
        match self.labels.read(index, 1)?[0] {
            label if u16::from(label) < self.classes => Ok(label),
            label => {
                let message = format!("the label is {label}, it is below {}", self.classes);
                Err(Error::data(self.labels.file.path(), format!("record {}", index + 1), message))
            }
        }
    }
}

/// The sizes that an IDX file of bytes begins with; the file is as long as they say.
fn header<const N: usize>(path: &Path) -> Result<(Places, [u64; N]), Error> {
    let file = Places::open(path)?;
    let head = file.read_up_to(0, 4 + 4 * N)?;
    let refuse = |message: String| Error::data(path, "header", message);
    if head.starts_with(&[0x1f, 0x8b]) {
        return Err(refuse("is compressed; decompress it first, such as with gunzip".into()));
    }
    if head.len() < 4 + 4 * N || head[..4] != [0, 0, 8, N as u8] {
        return Err(refuse(format!("is not that of an IDX file of bytes in {N} dimensions; are images and labels mixed up?")));
    }
    let mut sizes = [0; N];
    sizes.iter_mut().zip(head[4..].as_chunks().0).for_each(|(size, bytes)| *size = u64::from(u32::from_be_bytes(*bytes)));
    let (due, size) = (sizes.iter().try_fold(1u64, |product, size| product.checked_mul(*size)), file.size()?);
    match due.and_then(|due| due.checked_add(4 + 4 * N as u64)) {
        Some(due) if due == size && due > 4 + 4 * N as u64 => Ok((file, sizes)),
        _ => Err(refuse(format!("says {sizes:?}, which does not go with a file of {size} bytes"))),
    }
}

/// Images of one split.
#[derive(Clone)]
struct Part {
    album: Arc<Album>,
    images: Arc<Vec<u64>>,
}

struct Patches {
    parts: [Part; 3],
    shape: Shape,
    patch: usize,
    /// Mean and standard deviation of every colour.
    scales: Vec<(f64, f64)>,
}

impl Images {
    pub(super) fn open(&self, base: &Path) -> Result<Box<dyn Task>, Error> {
        if self.train.as_os_str().is_empty() {
            return Err(Error::key("task.train", "is missing; it names the file to learn from"));
        }
        let shares = Shares::choose(self.splits, [false, self.test.is_some()])?;
        let labels = self.train_labels.as_ref().map(|path| base.join(path));
        let train = Arc::new(Album::open(self.format, &base.join(&self.train), labels.as_deref())?);
        let shape = train.shape;
        self.fits(shape)?;
        let mut parts = self.share(train, shares)?;
        let mut notes = Vec::new();
        match &self.test {
            Some(path) => parts[2] = self.test(base, path, shape)?,
            None if !shares.tests() => {
                parts[2] = parts[1].clone();
                notes.push(TEST_IS_VALIDATION.into());
            }
            None => {}
        }
        let names = self.names(base)?;
        let mut source = Patches { parts, shape, patch: self.patch, scales: Vec::new() };
        source.scales = source.scale()?;
        let facts = source.facts(names)?;
        open(source, facts, notes)
    }

    fn fits(&self, shape: Shape) -> Result<(), Error> {
        let Shape { height, width, .. } = shape;
        if self.patch == 0 || !height.is_multiple_of(self.patch) || !width.is_multiple_of(self.patch) {
            return Err(Error::key("task.patch", format!("is {}; it divides both sides of an image of {height} x {width}", self.patch)));
        }
        Ok(())
    }

    fn share(&self, album: Arc<Album>, shares: Shares) -> Result<[Part; 3], Error> {
        let mut images: [Vec<u64>; 3] = Default::default();
        for index in 0..album.count {
            let hash = Digest::of(&album.pixels.read(index, album.shape.bytes())?);
            images[shares.of(mix(hash ^ mix(self.seed))) as usize].push(index);
        }
        Ok(images.map(|images| Part { album: Arc::clone(&album), images: Arc::new(images) }))
    }

    fn test(&self, base: &Path, path: &Path, shape: Shape) -> Result<Part, Error> {
        let labels = self.test_labels.as_ref().map(|path| base.join(path));
        let album = Album::open(self.format, &base.join(path), labels.as_deref())?;
        if album.shape != shape {
            let message =
                format!("images are {} x {}, those of train {} x {}", album.shape.height, album.shape.width, shape.height, shape.width);
            return Err(Error::data(base.join(path), "header", message));
        }
        Ok(Part { images: Arc::new((0..album.count).collect()), album: Arc::new(album) })
    }

    fn names(&self, base: &Path) -> Result<Option<Vec<String>>, Error> {
        let Some(path) = self.classes.as_ref().map(|path| base.join(path)) else { return Ok(None) };
        let text = std::fs::read_to_string(&path).map_err(|error| Error::file(&path, error))?;
        Ok(Some(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()))
    }
}

impl Patches {
    /// How often each label occurs in each split, by its number.
    fn counts(&self) -> Result<Vec<[u64; 3]>, Error> {
        let mut counts = vec![[0; 3]; 256];
        for (split, part) in self.parts.iter().enumerate() {
            for index in part.images.iter() {
                counts[usize::from(part.album.label(*index)?)][split] += 1;
            }
        }
        while counts.last() == Some(&[0; 3]) {
            counts.pop();
        }
        Ok(counts)
    }

    fn facts(&self, names: Option<Vec<String>>) -> Result<Facts, Error> {
        let counts = self.counts()?;
        let names = names.unwrap_or_else(|| (0..counts.len()).map(|class| class.to_string()).collect());
        if names.len() < counts.len() || counts.len() < 2 {
            let message = format!("names {} classes, labels go from 0 to {}", names.len(), counts.len().saturating_sub(1));
            return Err(Error::key("task.classes", message));
        }
        let counts = counts.into_iter().chain(std::iter::repeat([0; 3]));
        let Shape { colours, height, width, .. } = self.shape;
        Ok(Facts {
            name: "images",
            inputs: Inputs::Rows { width: colours * self.patch * self.patch },
            targets: Targets::Classes(names.len()),
            metric: Metric::Accuracy,
            causal: false,
            longest: (height / self.patch) * (width / self.patch),
            sizes: [0, 1, 2].map(|split| Some(self.parts[split].images.len() as u64)),
            balance: names.into_iter().zip(counts).map(|(name, counts)| Label { name, counts }).collect(),
            floor: None,
            fingerprint: String::new(),
        })
    }

    /// Mean and deviation of every colour over train, from counts of the 256 values; a colour that never changes is only shifted.
    fn scale(&self) -> Result<Vec<(f64, f64)>, Error> {
        let part = &self.parts[0];
        let mut counts = vec![[0u64; 256]; self.shape.colours];
        for index in part.images.iter() {
            let pixels = part.album.pixels.read(*index, self.shape.bytes())?;
            pixels.iter().enumerate().for_each(|(place, pixel)| counts[place / self.shape.plane()][usize::from(*pixel)] += 1);
        }
        let scale = |counts: &[u64; 256]| {
            let all = counts.iter().sum::<u64>().max(1) as f64;
            let mean = counts.iter().zip(0u32..).map(|(count, value)| *count as f64 * f64::from(value)).sum::<f64>() / all;
            let squares = counts.iter().zip(0u32..).map(|(count, value)| *count as f64 * (f64::from(value) - mean).powi(2)).sum::<f64>();
            (mean, if squares > 0.0 { (squares / all).sqrt() } else { 1.0 })
        };
        Ok(counts.iter().map(scale).collect())
    }

    /// The features of the patch whose first pixel is given.
    fn features(&self, pixels: &[u8], (top, left): (usize, usize), rows: &mut Vec<f32>) {
        for row in top..top + self.patch {
            for column in left..left + self.patch {
                for (colour, (mean, deviation)) in self.scales.iter().enumerate() {
                    let pixel = pixels[colour * self.shape.plane() + row * self.shape.width + column];
                    rows.push(((f64::from(pixel) - mean) / deviation) as f32);
                }
            }
        }
    }
}

impl Source for Patches {
    fn example(&self, split: Split, index: u64) -> Result<Example, Error> {
        let part = &self.parts[split as usize];
        let image = part.images[index as usize];
        let pixels = part.album.pixels.read(image, self.shape.bytes())?;
        let mut rows = Vec::with_capacity(pixels.len());
        for top in (0..self.shape.height).step_by(self.patch) {
            for left in (0..self.shape.width).step_by(self.patch) {
                self.features(&pixels, (top, left), &mut rows);
            }
        }
        Ok(Example { input: Input::Rows(rows), target: Target::Class(part.album.label(image)?.into()) })
    }
}
