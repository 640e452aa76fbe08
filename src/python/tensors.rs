//! Named arrays in safetensors files.
//!
//! The safetensors crate defines and validates the header; the bytes are moved here, because its
//! own writer neither syncs nor reports memory that cannot be had. Numbers travel through a small
//! buffer in little-endian order, so that any machine reads what another wrote and no byte is
//! reinterpreted.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use numpy::{
    Element, PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::{Interrupt, detach};
use crate::error::{Error, shape_text};
use crate::memory;

/// Holds some 50,000 tensors. A larger header is refused before it is parsed.
const MAX_HEADER: usize = 8 << 20;

/// What parsing may take for each byte of header, at worst (`[1,1,1,...]`): two bytes of text
/// become a value of 32 bytes in a vector that doubles. The parser cannot report that memory is
/// short, so that much is asked for first.
const PARSE_FACTOR: usize = 64;

/// The most dimensions that every supported NumPy can have.
const MAX_RANK: usize = 32;

/// The bytes that one read or write moves.
const CHUNK: usize = 64 << 10;

/// The key of the header that holds text instead of a tensor.
const METADATA_KEY: &str = "__metadata__";

/// Write arrays and text to a safetensors file, whole or not at all.
///
/// An existing file is replaced at the last moment; when anything fails it stays as it was.
#[pyfunction]
pub(crate) fn save_tensors(
    py: Python<'_>,
    path: PathBuf,
    tensors: &Bound<'_, PyDict>,
    metadata: BTreeMap<String, String>,
) -> PyResult<()> {
    let mut named = Vec::with_capacity(tensors.len());
    for (name, array) in tensors {
        let name = name.extract::<String>()?;
        if name == METADATA_KEY {
            return Err(PyValueError::new_err(format!(
                "tensors: the name {name:?} is reserved"
            )));
        }
        let source = Source::borrow(&name, &array)?;
        named.push((name, source));
    }
    // The format wants the widest elements first, so that each tensor is aligned.
    named.sort_by_key(|(_, source)| std::cmp::Reverse(source.dtype()));
    let header = header(&named, &metadata)?;
    let views: Vec<View<'_>> = named.iter().map(|(_, source)| source.view()).collect();
    detach(py, |interrupt| {
        Ok(replace(&path, &header, &views, interrupt))
    })?
    .map_err(|failure| failure.into_py(&path))
}

/// Read a safetensors file into fresh arrays, in the order of the file, and its text.
#[pyfunction]
pub(crate) fn load_tensors<'py>(
    py: Python<'py>,
    path: PathBuf,
) -> PyResult<(Bound<'py, PyDict>, BTreeMap<String, String>)> {
    let contents = detach(py, |interrupt| Ok(read(&path, interrupt)))?
        .map_err(|failure| failure.into_py(&path))?;
    let tensors = PyDict::new(py);
    for (name, shape, values) in contents.tensors {
        tensors.set_item(name, values.into_array(py, &shape)?)?;
    }
    Ok((tensors, contents.metadata))
}

/// The element types that are saved and loaded: this table is the only list of them.
macro_rules! element_types {
    ($($variant:ident $element:ty),+ $(,)?) => {
        /// An array to save, borrowed from Python.
        enum Source<'py> {
            $($variant(PyReadonlyArrayDyn<'py, $element>)),+
        }

        /// The numbers of a [`Source`], without the interpreter.
        enum View<'a> {
            $($variant(&'a [$element])),+
        }

        /// Numbers read from a file.
        enum Values {
            $($variant(Vec<$element>)),+
        }

        impl<'py> Source<'py> {
            fn borrow(name: &str, array: &Bound<'py, PyAny>) -> PyResult<Self> {
                $(if let Ok(array) = array.cast::<PyArrayDyn<$element>>() {
                    return Ok(Self::$variant(contiguous(name, array)?));
                })+
                Err(unsupported(name, array))
            }

            fn dtype(&self) -> Dtype {
                match self { $(Self::$variant(_) => Dtype::$variant),+ }
            }

            fn shape(&self) -> &[usize] {
                match self { $(Self::$variant(array) => array.shape()),+ }
            }

            fn view(&self) -> View<'_> {
                match self {
                    // `contiguous` made sure of it.
                    $(Self::$variant(array) => View::$variant(array.as_slice().unwrap_or(&[]))),+
                }
            }
        }

        impl View<'_> {
            fn write(&self, file: &mut impl Write, interrupt: &Interrupt) -> FileResult<()> {
                match self { $(Self::$variant(values) => write_values(values, file, interrupt)),+ }
            }
        }

        impl Values {
            fn read(
                dtype: Dtype,
                name: &str,
                count: usize,
                file: &mut impl Read,
                interrupt: &Interrupt,
            ) -> FileResult<Self> {
                match dtype {
                    $(Dtype::$variant => {
                        read_values::<$element>(name, count, file, interrupt).map(Self::$variant)
                    })+
                    _ => Err(Failure::Format(format!(
                        "tensor {name:?} has the type {dtype}, expected one of {}",
                        [$(stringify!($variant)),+].join(", ")
                    ))),
                }
            }

            fn into_array<'py>(self, py: Python<'py>, shape: &[usize]) -> PyResult<Bound<'py, PyAny>> {
                match self {
                    $(Self::$variant(values) => {
                        Ok(PyArray1::from_vec(py, values).reshape(shape)?.into_any())
                    }),+
                }
            }
        }

        $(impl LittleEndian for $element {
            fn put(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }

            fn get(bytes: &[u8]) -> Self {
                let mut whole = [0; size_of::<Self>()];
                whole.copy_from_slice(bytes);
                Self::from_le_bytes(whole)
            }
        })+
    };
}

element_types! {
    F64 f64, I64 i64, U64 u64, F32 f32, I32 i32, U32 u32, I16 i16, U16 u16, I8 i8, U8 u8,
}

/// A number as the file holds it.
trait LittleEndian: Copy + Element {
    fn put(self, bytes: &mut [u8]);
    fn get(bytes: &[u8]) -> Self;
}

fn contiguous<'py, E: Element>(
    name: &str,
    array: &Bound<'py, PyArrayDyn<E>>,
) -> PyResult<PyReadonlyArrayDyn<'py, E>> {
    let array = array.try_readonly().map_err(|error| {
        PyValueError::new_err(format!("tensors[{name:?}]: cannot be read now: {error}"))
    })?;
    if array.is_c_contiguous() && array.as_slice().is_ok() {
        return Ok(array);
    }
    Err(PyValueError::new_err(format!(
        "tensors[{name:?}]: expected a C-contiguous, aligned array, got shape {} otherwise",
        shape_text(array.shape())
    )))
}

fn unsupported(name: &str, array: &Bound<'_, PyAny>) -> PyErr {
    let got = match array.cast::<PyUntypedArray>() {
        Ok(array) => format!("dtype {}", array.dtype()),
        Err(_) => array.get_type().to_string(),
    };
    PyTypeError::new_err(format!(
        "tensors[{name:?}]: expected an array of floats of 4 or 8 bytes, or of integers, in native byte order, got {got}"
    ))
}

/// The file up to its numbers: the length of the header, then the header, padded to 8 bytes.
fn header(
    named: &[(String, Source<'_>)],
    metadata: &BTreeMap<String, String>,
) -> PyResult<Vec<u8>> {
    let mut end = 0;
    let mut infos = Vec::with_capacity(named.len());
    for (name, source) in named {
        let start = end;
        let count: usize = source.shape().iter().product();
        end += count * source.dtype().bitsize() / 8;
        let info = TensorInfo {
            dtype: source.dtype(),
            shape: source.shape().to_vec(),
            data_offsets: (start, end),
        };
        infos.push((name.clone(), info));
    }
    let invalid =
        |error: &dyn std::fmt::Display| PyValueError::new_err(format!("tensors: {error}"));
    let tensors = Metadata::new(None, infos).map_err(|error| invalid(&error))?;
    let mut text = serde_json::to_string(&tensors).map_err(|error| invalid(&error))?;
    if !metadata.is_empty() {
        // The crate keeps text in a hash map, whose order differs from run to run. Written here, in
        // order, equal contents make equal files.
        let metadata = serde_json::to_string(metadata).map_err(|error| invalid(&error))?;
        let comma = if named.is_empty() { "" } else { "," };
        text.insert_str(1, &format!("\"{METADATA_KEY}\":{metadata}{comma}"));
    }
    let length = text.len().next_multiple_of(8);
    if length > MAX_HEADER {
        return Err(PyValueError::new_err(format!(
            "tensors: expected names and metadata of at most {MAX_HEADER} bytes, got {length}"
        )));
    }
    let mut bytes = (length as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes.resize(8 + length, b' ');
    Ok(bytes)
}

/// Why a file could not be written or read.
enum Failure {
    Io(io::Error),
    Format(String),
    Core(Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Core(error)
    }
}

impl Failure {
    fn into_py(self, path: &Path) -> PyErr {
        match self {
            Self::Io(error) => os_error(&error, path),
            Self::Core(error) => error.into(),
            Self::Format(reason) => PyValueError::new_err(format!(
                "path: expected a safetensors file, got {:?}: {reason}",
                path.display().to_string()
            )),
        }
    }
}

/// Python's own exception for the error, with the path: `FileNotFoundError`, `PermissionError`, ...
fn os_error(error: &io::Error, path: &Path) -> PyErr {
    let Some(code) = error.raw_os_error() else {
        return PyOSError::new_err(format!("{}: {error}", path.display()));
    };
    let text = error.to_string();
    let reason = text
        .split(" (os error")
        .next()
        .unwrap_or_default()
        .to_owned();
    PyOSError::new_err((code, reason, path.as_os_str().to_owned()))
}

type FileResult<T> = std::result::Result<T, Failure>;

/// Writes a sibling, brings it to the disk, and puts it in the place of `path`.
fn replace(
    path: &Path,
    header: &[u8],
    views: &[View<'_>],
    interrupt: &Interrupt,
) -> FileResult<()> {
    // A link stays a link: what it points to is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (sibling, file) = create_sibling(&target)?;
    let done = write(file, header, views, interrupt)
        .and_then(|()| fs::rename(&sibling, &target).map_err(Failure::Io));
    if done.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&sibling);
        return done;
    }
    Ok(sync_folder(&target)?)
}

fn create_sibling(target: &Path) -> io::Result<(PathBuf, File)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = target.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    loop {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let mut sibling = std::ffi::OsString::from(".");
        sibling.push(name);
        sibling.push(format!(".{}.{count}.tmp", std::process::id()));
        let sibling = target.with_file_name(sibling);
        match OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&sibling)
        {
            // Left behind by a process that had our number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            opened => return Ok((sibling, opened?)),
        }
    }
}

fn write(file: File, header: &[u8], views: &[View<'_>], interrupt: &Interrupt) -> FileResult<()> {
    let mut file = BufWriter::with_capacity(CHUNK, file);
    file.write_all(header)?;
    for view in views {
        view.write(&mut file, interrupt)?;
    }
    file.into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .sync_all()?;
    Ok(())
}

/// Makes the new name itself survive a power cut, where folders can be synced.
fn sync_folder(target: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

fn write_values<E: LittleEndian>(
    values: &[E],
    file: &mut impl Write,
    interrupt: &Interrupt,
) -> FileResult<()> {
    let size = size_of::<E>();
    let mut buffer = [0; CHUNK];
    for chunk in values.chunks(CHUNK / size) {
        interrupt.check()?;
        for (value, bytes) in chunk.iter().zip(buffer.chunks_exact_mut(size)) {
            value.put(bytes);
        }
        file.write_all(&buffer[..size_of_val(chunk)])?;
    }
    Ok(())
}

/// What a file held.
struct Contents {
    tensors: Vec<(String, Vec<usize>, Values)>,
    metadata: BTreeMap<String, String>,
}

fn read(path: &Path, interrupt: &Interrupt) -> FileResult<Contents> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut file = BufReader::with_capacity(CHUNK, file);
    let header = read_header(&mut file, length)?;
    let mut tensors = Vec::with_capacity(header.tensors().len());
    for name in header.offset_keys() {
        let Some(info) = header.info(&name) else {
            continue;
        };
        check_shape(&name, &info.shape)?;
        // The header is valid: this product neither overflows nor exceeds the file.
        let count = info.shape.iter().product();
        let values = Values::read(info.dtype, &name, count, &mut file, interrupt)?;
        tensors.push((name, info.shape.clone(), values));
    }
    let metadata = header.metadata().iter().flatten();
    let metadata = metadata
        .map(|(key, text)| (key.clone(), text.clone()))
        .collect();
    Ok(Contents { tensors, metadata })
}

/// The format allows shapes that no array can have.
fn check_shape(name: &str, shape: &[usize]) -> FileResult<()> {
    let rank = shape.len();
    if rank > MAX_RANK {
        let reason = format!("tensor {name:?} has {rank} dimensions, more than {MAX_RANK}");
        return Err(Failure::Format(reason));
    }
    // NumPy's sizes are signed, and it counts the bytes of the other dimensions where one is 0; a
    // dimension of 2^64 - 1 would read as -1, which means "whatever fits".
    let most = isize::MAX as usize / size_of::<f64>();
    let nonzero = shape.iter().filter(|&&size| size > 0);
    match nonzero.copied().try_fold(1, usize::checked_mul) {
        Some(count) if count <= most => Ok(()),
        _ => Err(Failure::Format(format!(
            "tensor {name:?} has the impossible shape {}",
            shape_text(shape)
        ))),
    }
}

/// Reads and validates the header: afterwards the tensors fill the rest of the file exactly.
fn read_header(file: &mut impl Read, length: u64) -> FileResult<Metadata> {
    if length < 8 {
        return Err(Failure::Format(format!(
            "it has {length} bytes, too few for a header"
        )));
    }
    let mut size = [0; 8];
    file.read_exact(&mut size)?;
    let size = u64::from_le_bytes(size);
    if size > length - 8 {
        return Err(Failure::Format(format!(
            "its header claims {size} bytes of {length}"
        )));
    }
    if size > MAX_HEADER as u64 {
        return Err(Failure::Format(format!(
            "its header has {size} bytes, more than {MAX_HEADER}"
        )));
    }
    let header = parse_header(file, size as usize)?;
    let expected = header.data_len() as u64;
    let got = length - 8 - size;
    if expected != got {
        let reason = format!("its tensors need {expected} bytes and {got} are there");
        return Err(Failure::Format(reason));
    }
    Ok(header)
}

fn parse_header(file: &mut impl Read, size: usize) -> FileResult<Metadata> {
    let what = "the header of the file";
    drop(memory::reserved::<u8>(size * PARSE_FACTOR, what)?);
    let mut bytes = memory::filled(size, 0, what)?;
    file.read_exact(&mut bytes)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::Format(format!("its header is invalid: {error}")))
}

fn read_values<E: LittleEndian>(
    name: &str,
    count: usize,
    file: &mut impl Read,
    interrupt: &Interrupt,
) -> FileResult<Vec<E>> {
    let size = size_of::<E>();
    let mut values = memory::reserved(count, name)?;
    let mut buffer = [0; CHUNK];
    while values.len() < count {
        interrupt.check()?;
        let bytes = &mut buffer[..(count - values.len()).min(CHUNK / size) * size];
        file.read_exact(bytes)?;
        values.extend(bytes.chunks_exact(size).map(E::get));
    }
    Ok(values)
}
