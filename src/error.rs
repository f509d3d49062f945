//! The one error type of the crate.

/// Everything that can be refused. Each message names the tensor or option, what was expected and what was found;
/// an error is returned before anything reaches wgpu, and leaves nothing half-written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor's sizes or strides are not those that the program was made for.
    #[error("{tensor}: expected {expected}, found {found}")]
    Shape {
        /// The tensor's name in the program.
        tensor: String,
        /// The layout that the program was made for.
        expected: String,
        /// The layout that was given.
        found: String,
    },
    /// A tensor's element type is not the one that the program was made for.
    #[error("{tensor}: expected elements of type {expected}, found {found}")]
    Element {
        /// The tensor's name in the program.
        tensor: String,
        /// The element type that the program was made for.
        expected: &'static str,
        /// The element type that was given.
        found: &'static str,
    },
    /// A tensor that the program needs was not bound.
    #[error("{tensor}: not bound; this program needs {expected}")]
    Missing {
        /// The tensor's name in the program.
        tensor: String,
        /// The element type and layout that the program needs, and how many tensors more are missing.
        expected: String,
    },
    /// A name was bound that the program does not have.
    #[error("{tensor}: this program has no tensor of that name; it has {known}")]
    Unknown {
        /// The name that was given.
        tensor: String,
        /// The names that the program has; of many the nearest.
        known: String,
    },
    /// A buffer ends before the view of it does.
    #[error("{tensor}: the view ends at byte {needed}, but its buffer has {size} bytes")]
    BufferTooSmall {
        /// The tensor's name.
        tensor: String,
        /// The first byte behind the view.
        needed: u64,
        /// The buffer's size in bytes.
        size: u64,
    },
    /// A buffer was created without a usage that the crate needs.
    #[error("{tensor}: its buffer lacks usage {needed}; it has {found}")]
    Usage {
        /// The tensor's name.
        tensor: String,
        /// The usage that is missing.
        needed: &'static str,
        /// The usages that the buffer has.
        found: String,
    },
    /// One dispatch would write a buffer that it also binds a second time, as wgpu tracks whole buffers; or memory that the caller keeps, or a
    /// later dispatch reads, under another name.
    #[error("{}", alias(.dispatch, .written, .other))]
    Alias {
        /// The dispatch that binds both.
        dispatch: String,
        /// The tensor that is written.
        written: String,
        /// The other tensor in the same buffer, or the same once more.
        other: String,
    },
    /// A limit of the device is exceeded.
    #[error("{what}: needs {needed}{unit}, but the device's {limit} is {allowed}{unit}{}", help(.limit), unit = unit(.limit))]
    Limit {
        /// The tensor or dispatch.
        what: String,
        /// The name of the wgpu limit.
        limit: &'static str,
        /// What would be needed.
        needed: u64,
        /// What the device allows.
        allowed: u64,
    },
    /// An option or size is out of its range, or two of them contradict each other.
    #[error("{what}: expected {expected}, found {found}")]
    Option {
        /// The option's or size's name.
        what: String,
        /// The allowed range.
        expected: String,
        /// The value that was given.
        found: String,
    },
    /// A token, position or segment id lies outside its table.
    #[error("{tensor}[{index}]: id {id} is outside the table of {rows} rows")]
    Id {
        /// The name of the id tensor.
        tensor: String,
        /// Where the id stands.
        index: usize,
        /// The id.
        id: u32,
        /// The number of rows of the table.
        rows: usize,
    },
    /// The device refused a shader or a pipeline.
    #[error("{variant} does not compile on this device: {message}")]
    Compile {
        /// The variant's name.
        variant: String,
        /// What the device said.
        message: String,
    },
    /// The device lacks a feature that was asked for.
    #[error("{what} needs the device feature {feature}")]
    Feature {
        /// What asked for it.
        what: String,
        /// The wgpu feature's name.
        feature: &'static str,
    },
    /// A checkpoint cannot be used.
    #[error("{what}: {problem}")]
    Checkpoint {
        /// The file, the tensor, or the key of the configuration.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A device, a queue or a mapping failed.
    #[error("device: {0}")]
    Device(String),
}

impl Error {
    /// An [`Error::Option`] from anything that can be shown.
    pub(crate) fn option(what: impl Into<String>, expected: impl ToString, found: impl ToString) -> Self {
        Self::Option { what: what.into(), expected: expected.to_string(), found: found.to_string() }
    }

    /// An [`Error::Checkpoint`] from anything that can be shown.
    #[cfg(feature = "safetensors")]
    pub(crate) fn checkpoint(what: impl ToString, problem: impl ToString) -> Self {
        Self::Checkpoint { what: shortened(what.to_string()), problem: shortened(problem.to_string()) }
    }

    /// An [`Error::Shape`] from anything that can be shown.
    pub(crate) fn shape(tensor: impl Into<String>, expected: impl ToString, found: impl ToString) -> Self {
        Self::Shape { tensor: tensor.into(), expected: expected.to_string(), found: found.to_string() }
    }
}

/// The text of [`Error::Alias`].
fn alias(dispatch: &str, written: &str, other: &str) -> String {
    if written == other {
        return format!("{written}: {dispatch} reads and writes it: let it write another tensor, in a buffer of its own");
    }
    format!("{written} and {other} share a buffer, and {dispatch} writes {written}: give one of them a buffer of its own")
}

/// What a limit counts, where it is bytes.
fn unit(limit: &str) -> &'static str {
    if limit.ends_with("_size") { " bytes" } else { "" }
}

/// What may help against a limit that a device can be asked to raise.
fn help(limit: &str) -> &'static str {
    match limit {
        "max_buffer_size" | "max_storage_buffer_binding_size" => "; a device with wanted_limits(&adapter) may allow more",
        _ => "",
    }
}

/// The beginning and the end of a text that is too long for a message: names and values of a file may be as long as the file.
#[cfg(feature = "safetensors")]
fn shortened(text: String) -> String {
    const HALF: usize = 400;
    let from = text.char_indices().nth(HALF).map(|(at, _)| at);
    let to = text.char_indices().nth_back(HALF - 1).map(|(at, _)| at);
    match (from, to) {
        (Some(from), Some(to)) if from < to => format!("{} … {}", &text[..from], &text[to..]),
        _ => text,
    }
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
