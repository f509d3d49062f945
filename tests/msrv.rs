//! The oldest Rust that the crate promises is one that its dependencies promise too.

use std::collections::{HashMap, HashSet};
use std::process::Command;

use serde_json::Value;

/// `rust-version` as numbers, 0 where a package states none.
fn version(package: &Value) -> Vec<u32> {
    let text = package["rust_version"].as_str().unwrap_or("0");
    text.split('.').map(|part| part.parse().expect("a number")).collect()
}

/// No dependency of a build without tests asks for a newer Rust than Cargo.toml states.
#[test]
fn dependencies_keep_the_stated_rust_version() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let id = |value: &Value| value.as_str().expect("an id").to_owned();

    let packages: HashMap<String, Value> = list(&metadata["packages"]).into_iter().map(|p| (id(&p["id"]), p)).collect();
    let nodes: HashMap<String, Value> = list(&metadata["resolve"]["nodes"]).into_iter().map(|n| (id(&n["id"]), n)).collect();
    let root = id(&metadata["resolve"]["root"]);
    let stated = version(&packages[&root]);
    let (mut seen, mut waiting) = (HashSet::new(), vec![root]);
    while let Some(package) = waiting.pop() {
        assert!(version(&packages[&package]) <= stated, "{package} needs {}", packages[&package]["rust_version"]);
        for dependency in list(&nodes[&package]["deps"]) {
            let normal = list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
            if normal && seen.insert(id(&dependency["pkg"])) {
                waiting.push(id(&dependency["pkg"]));
            }
        }
    }
    assert!(seen.len() > 10, "only {} dependencies were looked at", seen.len());
}
