//! The IDX format of MNIST and its kin.

use std::path::{Path, PathBuf};

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::super::normal;
use crate::{Error, Result};

/// Small gray images of ten classes: MNIST, FashionMNIST and other files of their format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Pixels, image after image.
    pub pixels: Vec<u8>,
    /// Number of pixels of an image.
    pub size: usize,
    /// Classes, from 0 to 9, one an image.
    pub labels: Vec<u8>,
}

impl Images {
    /// Reads a file of images (`idx3-ubyte`) and the file of their labels (`idx1-ubyte`), each plain or gzipped.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], or [`Error::File`] for files that are not IDX of unsigned bytes in three and one dimensions, are
    /// cut short or too long, disagree on the number of images, hold no pixel, or have a label above 9.
    pub fn read(images: impl AsRef<Path>, labels: impl AsRef<Path>) -> Result<Self> {
        let (images, labels) = (images.as_ref(), labels.as_ref());
        let ([count, height, width], pixels) = read::<3>(images)?;
        let ([labelled], classes) = read::<1>(labels)?;
        if count != labelled {
            let message = format!(
                "has {labelled} labels, but {} has {count} images",
                images.display()
            );
            return Err(Error::file(labels, message));
        }
        if pixels.is_empty() {
            return Err(Error::file(
                images,
                format!(
                    "has {count} images of {height} x {width} pixels; at least 1 of each must be there"
                ),
            ));
        }
        if let Some(index) = classes.iter().position(|&class| class > 9) {
            let message = format!(
                "label {index} is {}, but must be from 0 to 9",
                classes[index]
            );
            return Err(Error::file(labels, message));
        }
        Ok(Self {
            pixels,
            size: height * width,
            labels: classes,
        })
    }

    /// Reads the training and the test images of a folder under their usual names, `train-images-idx3-ubyte`,
    /// `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, with or without `.gz`.
    ///
    /// # Errors
    ///
    /// [`Error::File`] for a folder without one of them, and those of [`read`](Self::read).
    pub fn folder(folder: impl AsRef<Path>) -> Result<[Self; 2]> {
        let folder = folder.as_ref();
        let images = |part: &str| {
            let images = find(folder, &format!("{part}-images-idx3-ubyte"))?;
            Self::read(images, find(folder, &format!("{part}-labels-idx1-ubyte"))?)
        };
        Ok([images("train")?, images("t10k")?])
    }

    /// Images that a program made, for trying things out without a download: 12 x 12 pixels, ten classes, each a pattern
    /// mixed with another class's and with noise. The patterns are always the same, `seed` chooses the images.
    pub fn synthetic(images: usize, seed: u64) -> Self {
        const SIZE: usize = 144;
        let mut random = Xoshiro256PlusPlus::seed_from_u64(0);
        let patterns: Vec<f64> = (0..10 * SIZE).map(|_| random.random()).collect();
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..images {
            let [class, other] = [(); 2].map(|()| random.random_range(0..10_u8));
            let share = random.random_range(0.5..1.0);
            labels.push(class);
            for pixel in 0..SIZE {
                let [own, foreign] =
                    [class, other].map(|c| patterns[usize::from(c) * SIZE + pixel]);
                let value = share * own + (1.0 - share) * foreign + 0.5 * normal(&mut random);
                // Saturates at both ends.
                pixels.push((255.0 * value) as u8);
            }
        }
        Self {
            pixels,
            size: SIZE,
            labels,
        }
    }

    /// Number of images.
    pub fn images(&self) -> usize {
        self.labels.len()
    }
}

fn find(folder: &Path, name: &str) -> Result<PathBuf> {
    let names = [folder.join(name), folder.join(format!("{name}.gz"))];
    let found = names.into_iter().find(|path| path.exists());
    found.ok_or_else(|| Error::file(folder, format!("has neither {name} nor {name}.gz")))
}

/// The dimensions and the bytes of an IDX file of unsigned bytes in `D` dimensions.
fn read<const D: usize>(path: &Path) -> Result<([usize; D], Vec<u8>)> {
    let bytes = super::bytes(path)?;
    let fail = |message: String| Error::file(path, message);
    let magic = [0, 0, 8, D as u8];
    if !bytes.starts_with(&magic) {
        let start = &bytes[..bytes.len().min(4)];
        return Err(fail(format!(
            "starts with {start:02x?}, but IDX of unsigned bytes in {D} dimensions starts with {magic:02x?}"
        )));
    }
    let mut lengths = bytes[4..].chunks_exact(4);
    let mut dims = [0; D];
    for dim in &mut dims {
        let length = lengths.next().and_then(|b| <[u8; 4]>::try_from(b).ok());
        let length = length
            .ok_or_else(|| fail(format!("ends in its header, after {} bytes", bytes.len())))?;
        *dim = u32::from_be_bytes(length) as usize;
    }
    let header = 4 + 4 * D;
    let claimed = dims
        .iter()
        .try_fold(1_usize, |product, &dim| product.checked_mul(dim));
    let given = bytes.len() - header;
    if claimed != Some(given) {
        return Err(fail(format!(
            "claims dimensions {dims:?}, but has {given} bytes behind its header; copy or download it again"
        )));
    }
    Ok((dims, bytes[header..].to_vec()))
}
