//! Files, and what comes of each.

use std::path::{Path, PathBuf};

use super::case::Case;
use super::gpu::Session;
use super::huggingface::Model;
use super::judge::{Deviation, Outcome, Stop, Verdict, judge, unsupported};
use super::{onnx, pytorch};
use tileformer::Element;

/// How many cases ended in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) unsupported: usize,
}

impl Tally {
    pub(crate) fn count(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Passed(_) => self.passed += 1,
            Verdict::Failed(_) => self.failed += 1,
            Verdict::Unsupported(_) => self.unsupported += 1,
        }
    }
}

/// The case files under a path, sorted; a path that is no folder is a file, whatever its name.
///
/// # Errors
/// A folder that cannot be read, or has no case.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    collect(path, &mut found).map_err(|e| e.to_string())?;
    found.sort();
    if found.is_empty() { Err("no .safetensors file in this folder".into()) } else { Ok(found) }
}

/// Links to folders are not followed.
fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "safetensors") {
            found.push(path);
        }
    }
    Ok(())
}

/// A case's name: the file's, without its extension.
pub(crate) fn name(path: &Path) -> String {
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Reads a file, runs its case and compares.
pub(crate) async fn run_file(session: &Session, path: &Path) -> Verdict {
    match Case::read(path) {
        Ok(case) => run_case(session, &case).await,
        Err(stop) => stop.into(),
    }
}

/// Runs a case and compares every output.
pub(crate) async fn run_case(session: &Session, case: &Case) -> Verdict {
    compared(session, case).await.map_or_else(Verdict::from, Verdict::Passed)
}

async fn compared(session: &Session, case: &Case) -> Outcome<Deviation> {
    let session = &session.stored(if case.is_f16() { Element::F16 } else { Element::F32 });
    match case.suite()? {
        "onnx" => judge(case, &onnx::run(session, case).await?),
        "pytorch" => judge(case, &pytorch::run(session, case).await?),
        "huggingface" => {
            let run = Model::read(case)?;
            let on_reference = |stop| match stop {
                Stop::Failed(reason) => Stop::Failed(format!("on the CPU reference: {reason}")),
                other => other,
            };
            let twin = run.on_reference().and_then(|results| judge(case, &results)).map_err(on_reference)?;
            let worst = judge(case, &run.on_gpu(session).await?)?;
            Ok(if twin.share() > worst.share() { twin } else { worst })
        }
        other => unsupported(format!("suite {other}")),
    }
}
