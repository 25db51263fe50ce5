//! Tensors in a safetensors file, bit by bit as they are, one at a time in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use burn::tensor::{Bytes, DType, TensorData};
use safetensors::Dtype as Stored;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::{Error, Result};

/// The format's own limit on the size of a header.
const MAX_HEADER: u64 = 100_000_000;

/// Name, type and shape of a tensor.
#[derive(Debug, PartialEq)]
pub(super) struct Described {
    pub name: String,
    dtype: DType,
    shape: Vec<usize>,
}

impl Described {
    pub fn new(name: String, data: &TensorData) -> Self {
        Self {
            name,
            dtype: data.dtype(),
            shape: data.shape().to_vec(),
        }
    }
}

/// The two spellings of a type. Flex32 is float32 outside the device.
const TYPES: [(DType, Stored); 4] = [
    (DType::F64, Stored::F64),
    (DType::F32, Stored::F32),
    (DType::F16, Stored::F16),
    (DType::BF16, Stored::BF16),
];

/// Writes the header of a file of these tensors, whose bytes are to follow in this order.
pub(super) fn write_header(path: &Path, file: &mut dyn Write, tensors: &[Described]) -> Result<()> {
    let mut infos = Vec::with_capacity(tensors.len());
    let mut end = 0;
    for Described { name, dtype, shape } in tensors {
        let Some((_, stored)) = TYPES.iter().find(|(known, _)| known == dtype) else {
            let message = format!("`{name}` is of type {dtype:?}, which checkpoints cannot hold");
            return Err(Error::file(path, message));
        };
        let start = end;
        end += dtype.size() * shape.iter().product::<usize>();
        let info = TensorInfo {
            dtype: *stored,
            shape: shape.clone(),
            data_offsets: (start, end),
        };
        infos.push((name.clone(), info));
    }
    let metadata = Metadata::new(None, infos).map_err(|e| Error::file(path, e))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| Error::file(path, e))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    file.write_all(&length)
        .and_then(|()| file.write_all(&header))
        .map_err(|e| Error::io(path, e))
}

/// A file of tensors that is open for reading.
pub(super) struct Tensors {
    path: PathBuf,
    file: File,
    data: u64,
    infos: HashMap<String, TensorInfo>,
}

impl Tensors {
    /// Opens a file whose checksum is right, so that an error here is one of the writer.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let wrong = |what: String| Error::file(path, format!("not a safetensors file: {what}"));
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER.min(size.saturating_sub(8)) {
            return Err(wrong(format!("its header claims {length} bytes of {size}")));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(io)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|e| wrong(e.to_string()))?;
        let data = 8 + length;
        if data.saturating_add(metadata.data_len() as u64) != size {
            return Err(wrong(format!("its tensors do not end at byte {size}")));
        }
        let infos = metadata.tensors().into_iter();
        Ok(Self {
            path: path.to_owned(),
            file,
            data,
            infos: infos.map(|(name, info)| (name, info.clone())).collect(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What follows a prefix in the names of tensors, sorted.
    pub fn under<'a>(&'a self, prefix: &'a str) -> Vec<&'a str> {
        let names = self.infos.keys();
        let mut names: Vec<_> = names.filter_map(|name| name.strip_prefix(prefix)).collect();
        names.sort_unstable();
        names
    }

    /// Shape and type of a tensor, if it is there.
    pub fn describe(&self, name: &str) -> Option<(&[usize], DType)> {
        let info = self.infos.get(name)?;
        let (dtype, _) = TYPES.iter().find(|(_, stored)| *stored == info.dtype)?;
        Some((&info.shape, *dtype))
    }

    /// Reads a tensor, if it is there.
    pub fn read(&self, name: &str) -> Result<Option<TensorData>> {
        let Some((shape, dtype)) = self.describe(name) else {
            return Ok(None);
        };
        let (start, end) = self.infos[name].data_offsets;
        let mut bytes = vec![0; end - start];
        (&self.file)
            .seek(SeekFrom::Start(self.data + start as u64))
            .and_then(|_| (&self.file).read_exact(&mut bytes))
            .map_err(|e| Error::io(&self.path, e))?;
        let data = TensorData::try_from_bytes(Bytes::from_bytes_vec(bytes), shape, dtype);
        data.map(Some).map_err(|e| Error::file(&self.path, e))
    }
}
