//! What examples have in common as programs: why they computed nothing, how they end, and which adapters there are.

use std::error::Error;
use std::io::Write;

use tileformer::convenience::{NO_ADAPTER, adapters};

/// Why nothing was computed.
pub(crate) enum Failure {
    /// What was asked for cannot be done: exit code 2.
    Usage(String),
    /// It could be, but something failed: exit code 1.
    Other(Box<dyn Error>),
}

impl<E: Into<Box<dyn Error>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Writes what came of a run, and gives the exit code. A reader that has gone, as `| head` does, is no failure.
pub(crate) fn finish(result: Result<String, Failure>, out: &mut dyn Write, notices: &mut dyn Write) -> u8 {
    match result {
        Ok(text) => {
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            0
        }
        Err(Failure::Usage(message)) => {
            let _ = writeln!(notices, "{message}");
            2
        }
        Err(Failure::Other(error)) => {
            let _ = writeln!(notices, "error: {error}");
            1
        }
    }
}

/// The adapters of this machine, one a line.
pub(crate) fn list_adapters(notices: &mut dyn Write) -> Result<String, Failure> {
    let found = adapters();
    if found.is_empty() {
        writeln!(notices, "{NO_ADAPTER}")?;
    }
    Ok(found.iter().map(|a| format!("{} ({:?}, {})\n", a.name, a.device_type, a.backend)).collect())
}
