//! The header of a safetensors file: what lies where, and whether it can.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use safetensors::tensor::{Dtype, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

/// Bytes of the length in front of the header.
const LENGTH: usize = 8;
/// The format's own bound.
const MOST_HEADER_BYTES: u64 = 100_000_000;
/// The most dimensions of a tensor; frameworks have no more.
const MOST_DIMENSIONS: usize = 64;
/// Not a tensor: strings about the file.
const METADATA: &str = "__metadata__";

/// A tensor of a file: what its elements are, its sizes, and its bytes in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) sizes: Vec<usize>,
    pub(super) bytes: Range<usize>,
}

/// The tensors of a file by name, every one within it: they follow each other without holes, as the format wants it, and each has
/// as many bytes as its sizes and elements say. The text says what is wrong otherwise, naming the tensor.
///
/// The `safetensors` crate's own reader is not used: it keeps the last of several tensors of one name, and adds up offsets without a look at
/// overflow.
pub(super) fn parse(file: &[u8]) -> Result<HashMap<String, Entry>, String> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH>() else {
        return Err(format!("{} bytes are too few for a safetensors file", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    let held = usize::try_from(length).ok().filter(|&n| n <= rest.len());
    let Some(length) = held.filter(|_| length <= MOST_HEADER_BYTES) else {
        let most = MOST_HEADER_BYTES.min(rest.len() as u64);
        return Err(format!("the header claims {length} bytes, of at most {most}"));
    };
    let (header, data) = rest.split_at(length);
    let header = std::str::from_utf8(header).map_err(|e| format!("the header is no text: {e}"))?;
    let Header(mut tensors) = serde_json::from_str(header).map_err(|e| format!("the header: {e}"))?;
    tensors.sort_by_key(|(_, info)| info.data_offsets);

    let mut end = 0;
    let mut entries = HashMap::with_capacity(tensors.len());
    for (name, TensorInfo { dtype, shape, data_offsets: (from, to) }) in tensors {
        if from != end || to < from || to > data.len() {
            let bytes = data.len();
            return Err(format!(
                "tensor {name}: bytes {from}..{to} do not follow the {end} before them in {bytes} bytes of data"
            ));
        }
        if shape.len() > MOST_DIMENSIONS {
            return Err(format!("tensor {name}: {} dimensions, of at most {MOST_DIMENSIONS}", shape.len()));
        }
        let elements = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let expected = elements.and_then(|n| n.checked_mul(dtype.bitsize())).filter(|bits| bits.is_multiple_of(8));
        if expected.map(|bits| bits / 8) != Some(to - from) {
            let bytes = to - from;
            return Err(format!("tensor {name}: {bytes} bytes do not make {shape:?} elements of type {dtype:?}"));
        }
        end = to;
        let start = LENGTH + length;
        entries.insert(name, Entry { dtype, sizes: shape, bytes: start + from..start + to });
    }
    if end == data.len() { Ok(entries) } else { Err(format!("{} bytes of data behind the last tensor", data.len() - end)) }
}

/// Tensors in the order of the file, no name twice.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut seen, mut tensors) = (std::collections::HashSet::new(), Vec::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("{name} is there twice")));
                    }
                    if name == METADATA {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    match map.next_value() {
                        Ok(info) => tensors.push((name, info)),
                        Err(error) => return Err(A::Error::custom(format!("tensor {name}: {error}"))),
                    }
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}
