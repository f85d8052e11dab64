//! The one direction of dependencies: a change that turns it round fails here.
//!
//! `pvmmd -> migrate -> {uapi, core's pure parts}; Linux port -> core -> hostabi`. What goes into the
//! module has no other dependencies at all, and only the Linux port names the kernel's crates.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{file, Result};
use crate::paths;
use crate::prepare::metadata;

/// What goes into the module, and what it may depend on.
const ALLOWED: [(&str, &[&str]); 3] = [
    ("pvmm-hostabi", &[]),
    ("pvmm-uapi", &[]),
    ("pvmm-core", &["pvmm-hostabi", "pvmm-uapi"]),
];

/// Folders whose sources must not know which kernel hosts them.
const NEUTRAL: [&str; 3] = ["hostabi/src", "kmod/core/src", "kmod/uapi/src"];

/// Words that name the Linux kernel's crates, in code.
const KERNEL_WORDS: [&str; 3] = ["kernel::", "extern crate kernel", "bindings::"];

/// Checks the direction; false (with an explanation printed) if something breaks it.
///
/// # Errors
/// [`crate::error::Error`] if the sources or cargo's metadata can't be read.
pub fn check() -> Result<bool> {
    let mut broken = wrong_dependencies(&metadata()?);
    let mut sources = Vec::new();
    for folder in NEUTRAL {
        collect(&paths::workspace().join(folder), &mut sources)?;
    }
    for path in &sources {
        let text = fs::read_to_string(path).map_err(file("can't read", path))?;
        if let Some((number, line)) = kernel_line(&text) {
            broken.push(format!("{}:{number}: {line}", path.display()));
        }
    }
    if sources.is_empty() {
        broken.push("no sources found: the check looks in the wrong place".to_owned());
    }
    for line in &broken {
        eprintln!("    {line}");
    }
    Ok(broken.is_empty())
}

fn wrong_dependencies(metadata: &serde_json::Value) -> Vec<String> {
    let mut broken = Vec::new();
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    for (name, allowed) in ALLOWED {
        let Some(package) = packages.iter().find(|p| p["name"] == name) else {
            broken.push(format!("{name} isn't in the workspace"));
            continue;
        };
        let dependencies = package["dependencies"].as_array().cloned();
        for dependency in dependencies.unwrap_or_default() {
            let other = dependency["name"].as_str().unwrap_or_default();
            // A "kind" of null is an ordinary dependency; tests may use what they like.
            if dependency["kind"].as_str() != Some("dev") && !allowed.contains(&other) {
                broken.push(format!("{name} must not depend on {other}"));
            }
        }
    }
    broken
}

/// The first line of code that names the kernel's crates.
fn kernel_line(text: &str) -> Option<(usize, &str)> {
    text.lines().enumerate().find_map(|(at, line)| {
        let code = line.split("//").next().unwrap_or_default();
        KERNEL_WORDS
            .iter()
            .any(|word| contains_word(code, word))
            .then_some((at + 1, line.trim()))
    })
}

/// Whether `word` is there and isn't the end of a longer name.
fn contains_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        !code[..at]
            .chars()
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

fn collect(folder: &Path, sources: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(file("can't read", folder))? {
        let path = entry.map_err(file("can't read", folder))?.path();
        if path.is_dir() {
            collect(&path, sources)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            sources.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_names_the_kernel_is_found_and_prose_is_not() {
        assert!(kernel_line("use kernel::prelude::*;").is_some());
        assert!(kernel_line("let a = kernel::bindings::x;").is_some());
        assert!(kernel_line("/// as `kernel::Module` does").is_none());
        assert!(kernel_line("let a = subkernel::x;").is_none());
    }

    #[test]
    fn a_dependency_of_the_core_on_the_host_or_on_anything_else_is_found() {
        let package = |name: &str, dependency: &str, kind: serde_json::Value| serde_json::json!({"name": name, "dependencies": [{"name": dependency, "kind": kind}]});
        let metadata = |core: serde_json::Value| {
            serde_json::json!({"packages": [
                {"name": "pvmm-hostabi", "dependencies": []},
                package("pvmm-uapi", "proptest", "dev".into()),
                core,
            ]})
        };
        let null = serde_json::Value::Null;
        let good = metadata(package("pvmm-core", "pvmm-hostabi", null.clone()));
        assert_eq!(wrong_dependencies(&good), Vec::<String>::new());
        let bad = metadata(package("pvmm-core", "serde", null));
        assert_eq!(
            wrong_dependencies(&bad),
            ["pvmm-core must not depend on serde"]
        );
    }
}
