//! The cases of the conformance example in a browser: the same runner, whose every readback gives the page its turn.

#![allow(dead_code)] // The runner also reads folders, and has what only its tests use.

#[path = "../../conformance/runner.rs"]
mod runner;

use include_dir::{Dir, include_dir};
use runner::{case, gpu, judge, suite};
use tileformer::convenience::Setup;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsError, UnwrapThrowExt};

static CASES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../tests/data/conformance");

/// The names of the cases that are here.
#[wasm_bindgen]
pub fn cases() -> Vec<String> {
    let files = CASES.find("**/*.safetensors").expect_throw("a pattern");
    files.map(|file| file.path().display().to_string()).collect()
}

/// The bytes of one of them.
#[wasm_bindgen]
pub fn read(name: &str) -> Option<Vec<u8>> {
    CASES.get_file(name).map(|file| file.contents().to_vec())
}

/// The browser's device.
#[wasm_bindgen]
pub struct Runner(gpu::Session);

/// What came of a case: `ok`, `FAIL` or `unsupported`, and why.
#[wasm_bindgen(getter_with_clone)]
pub struct Report {
    pub verdict: String,
    pub reason: String,
}

#[wasm_bindgen]
impl Runner {
    /// Opens the device, with WebGPU's default limits and no feature where `core_only`.
    ///
    /// # Errors
    /// Where the browser has none.
    pub async fn open(core_only: bool) -> Result<Runner, JsError> {
        console_error_panic_hook::set_once();
        Ok(Self(gpu::Session::open(&Setup { core_only, ..Setup::default() }).await?))
    }

    /// What it is, and the features that it was opened with.
    pub fn device(&self) -> String {
        let (info, features) = (&self.0.gpu().info, self.0.gpu().device.features().features_webgpu);
        let features: Vec<&str> = features.iter_names().map(|(name, _)| name).collect();
        format!("{} ({:?}): {}", info.name, info.device_type, features.join(", "))
    }

    /// Runs a case from the bytes of its file.
    pub async fn run(&self, bytes: &[u8]) -> Report {
        let verdict = match case::Case::parse(bytes) {
            Ok(case) => suite::run_case(&self.0, &case).await,
            Err(stop) => stop.into(),
        };
        let (verdict, reason) = match verdict {
            judge::Verdict::Passed(worst) => {
                ("ok", format!("worst error {:.1e} of allowance {:.1e}", worst.error, worst.allowance))
            }
            judge::Verdict::Failed(reason) => ("FAIL", reason),
            judge::Verdict::Unsupported(reason) => ("unsupported", reason),
        };
        Report { verdict: verdict.to_owned(), reason }
    }
}
