//! A safetensors file on disk, read and written one tensor at a time.
//!
//! Nothing is mapped into memory: plain reads need no unsafe code, and cost no more than the tensor that is being read.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use burn::tensor::{Element, TensorData, bf16, f16};
use safetensors::{
    Dtype as Stored,
    tensor::{Metadata, TensorInfo},
};

use super::dtype::Dtype;
use crate::error::{Error, Result};

/// The format's own limit on the size of a header, so that a damaged length does not claim all memory.
const MAX_HEADER: u64 = 100_000_000;

/// Bytes converted at once; a multiple of every element's size.
const CHUNK: usize = 1 << 16;

/// An open file whose header has been read and agrees with the file's size.
pub(super) struct Reader {
    path: PathBuf,
    file: File,
    data: u64,
    metadata: Metadata,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let damaged = |what: String| {
            let message =
                format!("not a complete safetensors file: {what}; copy or download it again");
            Error::file(path, message)
        };
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut length = [0; 8];
        if size < length.len() as u64 {
            return Err(damaged(format!("it has {size} bytes")));
        }
        file.read_exact(&mut length).map_err(io)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER.min(size - 8) {
            return Err(damaged(format!(
                "its header claims {length} bytes, the file has {size}"
            )));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(io)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|e| damaged(format!("header: {e}")))?;
        let data = 8 + length;
        let claimed = data.saturating_add(metadata.data_len() as u64);
        if claimed != size {
            return Err(damaged(format!(
                "its tensors end at byte {claimed}, the file has {size}"
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            data,
            metadata,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Names and shapes, in the order of the file.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (String, &[usize])> {
        let shape = |name: String| {
            let shape = self.metadata.info(&name)?.shape.as_slice();
            Some((name, shape))
        };
        self.metadata.offset_keys().into_iter().filter_map(shape)
    }

    /// Reads one tensor as `dtype`, whichever floating type it is stored in. No wider copy of it is held.
    ///
    /// # Errors
    /// A type that is not a float, a value that is not finite, or a failed read.
    pub(super) fn read(&mut self, name: &str, dtype: Dtype) -> Result<TensorData> {
        match dtype {
            Dtype::Float32 => self.read_as(name, |value| value),
            Dtype::Bfloat16 => self.read_as(name, bf16::from_f32),
        }
    }

    fn read_as<E: Element>(&mut self, name: &str, convert: fn(f32) -> E) -> Result<TensorData> {
        let shape = self.info(name)?.shape.clone();
        let count: usize = shape.iter().product();
        let mut values = Vec::with_capacity(count);
        while values.len() < count {
            let part = self.part(name, values.len())?;
            if part.is_empty() {
                return Err(Error::file(
                    &self.path,
                    format!("tensor `{name}` is cut short"),
                ));
            }
            values.extend(part.into_iter().map(convert));
        }
        Ok(TensorData::new(values, shape))
    }

    /// Reads some of a tensor's values from number `from` on: as many as are converted at once.
    pub(super) fn part(&mut self, name: &str, from: usize) -> Result<Vec<f32>> {
        let fail = |message: String| Error::file(&self.path, format!("tensor `{name}` {message}"));
        let info = self.info(name)?;
        let (width, convert): (usize, fn(&[u8]) -> f32) = match info.dtype {
            Stored::F32 => (4, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Stored::F16 => (2, |b| f16::from_le_bytes([b[0], b[1]]).to_f32()),
            // bfloat16 is the upper half of a float32.
            Stored::BF16 => (2, |b| f32::from_le_bytes([0, 0, b[0], b[1]])),
            other => {
                return Err(fail(format!(
                    "is stored as {other}, but must be F32, F16 or BF16; convert the checkpoint"
                )));
            }
        };
        let (start, end) = info.data_offsets;
        let start = (start + from * width).min(end);
        let mut bytes = vec![0; CHUNK.min(end - start)];
        let position = SeekFrom::Start(self.data + start as u64);
        (&self.file)
            .seek(position)
            .and_then(|_| (&self.file).read_exact(&mut bytes))
            .map_err(|e| Error::io(&self.path, e))?;
        let values: Vec<f32> = bytes.chunks_exact(width).map(convert).collect();
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            return Err(fail(format!(
                "holds {value}; a checkpoint with values that are not finite cannot be used"
            )));
        }
        Ok(values)
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        let missing = || Error::file(&self.path, format!("has no tensor `{name}`"));
        self.metadata.info(name).ok_or_else(missing)
    }
}

/// A file that is being written: header first, then the tensors in the order in which it names them.
pub(super) struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    dtype: Dtype,
}

impl Writer {
    /// Creates the file and writes the header for tensors of these names and shapes, all of type `dtype`.
    pub(super) fn create(
        path: &Path,
        tensors: &[(String, Vec<usize>)],
        dtype: Dtype,
    ) -> Result<Self> {
        let mut offset = 0;
        let infos = tensors.iter().map(|(name, shape)| {
            let start = offset;
            offset += dtype.width() * shape.iter().product::<usize>();
            let info = TensorInfo {
                dtype: match dtype {
                    Dtype::Float32 => Stored::F32,
                    Dtype::Bfloat16 => Stored::BF16,
                },
                shape: shape.clone(),
                data_offsets: (start, offset),
            };
            (name.clone(), info)
        });
        // transformers refuses a file that does not say which framework it is for.
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let metadata = Metadata::new(Some(format.into_iter().collect()), infos.collect())
            .map_err(|e| Error::file(path, e))?;
        let mut header = serde_json::to_vec(&metadata).map_err(|e| Error::file(path, e))?;
        header.resize(header.len().next_multiple_of(8), b' ');

        let file = File::create(path).map_err(|e| Error::io(path, e))?;
        let mut writer = Self {
            path: path.to_owned(),
            file: BufWriter::new(file),
            dtype,
        };
        writer.put(&(header.len() as u64).to_le_bytes())?;
        writer.put(&header)?;
        Ok(writer)
    }

    /// Writes the next tensor.
    pub(super) fn write(&mut self, tensor: TensorData) -> Result<()> {
        match self.dtype {
            Dtype::Float32 => self.write_as(tensor, f32::to_le_bytes),
            Dtype::Bfloat16 => self.write_as(tensor, bf16::to_le_bytes),
        }
    }

    fn write_as<E: Element, const WIDTH: usize>(
        &mut self,
        tensor: TensorData,
        to_bytes: fn(E) -> [u8; WIDTH],
    ) -> Result<()> {
        let tensor = tensor.convert::<E>();
        let values = tensor
            .as_slice::<E>()
            .map_err(|e| Error::file(&self.path, format!("{e:?}")))?;
        let mut bytes = Vec::with_capacity(CHUNK);
        for part in values.chunks(CHUNK / WIDTH) {
            bytes.clear();
            bytes.extend(part.iter().flat_map(|value| to_bytes(*value)));
            self.put(&bytes)?;
        }
        Ok(())
    }

    /// Hands everything to the disk.
    pub(super) fn finish(self) -> Result<()> {
        let io = |e| Error::io(&self.path, e);
        let file = self.file.into_inner().map_err(|e| io(e.into_error()))?;
        file.sync_all().map_err(io)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|e| Error::io(&self.path, e))
    }
}
