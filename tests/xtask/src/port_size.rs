//! The Linux port must stay small: what grows there isn't in the core, and every other port has to write it again.

use std::fs;
use std::path::Path;

use crate::error::{file, Result};
use crate::paths;

/// Most lines of code in `kmod/linux`.
const LIMIT: usize = 1500;

/// Whether the port is within its limit; says how long it is if not.
pub fn check() -> Result<bool> {
    let lines = count(&paths::workspace().join("kmod/linux"))?;
    if lines == 0 || lines > LIMIT {
        eprintln!("error: kmod/linux has {lines} lines of code, 1 to {LIMIT} are expected");
    }
    Ok((1..=LIMIT).contains(&lines))
}

fn count(folder: &Path) -> Result<usize> {
    let mut lines = 0;
    for found in fs::read_dir(folder).map_err(file("can't read", folder))? {
        let path = found.map_err(file("can't read", folder))?.path();
        if path.is_dir() {
            lines += count(&path)?;
        } else if path
            .extension()
            .is_some_and(|ending| ["rs", "c", "h"].iter().any(|known| ending == *known))
        {
            let text = fs::read_to_string(&path).map_err(file("can't read", &path))?;
            lines += text.lines().filter(|line| is_code(line)).count();
        }
    }
    Ok(lines)
}

/// Neither blank nor wholly a comment.
fn is_code(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty()
        && !["//", "/*", "*/", "* "]
            .iter()
            .any(|mark| line.starts_with(mark))
        && line != "*"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_blank_lines_are_no_code() {
        let text =
            "// SPDX\n\n/* a\n * b\n *\n */\n//! c\nfn d() {\n    *e = 1; // f\n}\n#include <g.h>";
        let code: Vec<&str> = text.lines().filter(|line| is_code(line)).collect();
        assert_eq!(
            code,
            ["fn d() {", "    *e = 1; // f", "}", "#include <g.h>"]
        );
    }
}
