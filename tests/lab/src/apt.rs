//! Which Debian archive this machine uses.
//!
//! The lab's tree comes from the same place as the machine's own packages, because that is the place
//! known to be reachable: a mirror, a snapshot, a cache in the local network. Read from apt's own
//! configuration, in both of its formats (sources.list(5)).

use std::fs;
use std::path::{Path, PathBuf};

/// One Debian archive that the machine installs packages from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// Its address, as apt takes it.
    pub uri: String,
    /// The keyring that its signatures are checked against, if apt's configuration names one.
    pub keyring: Option<PathBuf>,
}

/// Names of Debian suites; anything else in a `sources.list` isn't Debian itself.
const SUITES: [&str; 13] = [
    "stable",
    "oldstable",
    "oldoldstable",
    "testing",
    "unstable",
    "sid",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "buster",
    "experimental",
];

/// The machine's Debian archives, in apt's order; empty on a machine that isn't Debian.
pub fn archives(etc_apt: &Path) -> Vec<Archive> {
    let mut files = vec![etc_apt.join("sources.list")];
    let mut parts: Vec<PathBuf> = fs::read_dir(etc_apt.join("sources.list.d"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    parts.sort();
    files.extend(parts);
    let mut found: Vec<Archive> = Vec::new();
    for path in files {
        // apt ignores what it can't read for the same reason: an absent file is an empty one.
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        let archives = match path.extension().and_then(|e| e.to_str()) {
            Some("list") => one_line(&text),
            Some("sources") => deb822(&text),
            _ => continue,
        };
        for archive in archives {
            if !found.contains(&archive) {
                found.push(archive);
            }
        }
    }
    found
}

/// `deb [options] URI suite component...`
fn one_line(text: &str) -> Vec<Archive> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb ") else {
            continue;
        };
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else {
            continue;
        };
        if is_debian(uri, suite) && words.any(|component| component == "main") {
            found.push(Archive {
                uri: uri.to_owned(),
                keyring: options
                    .split_whitespace()
                    .find_map(|option| option.strip_prefix("signed-by="))
                    .and_then(keyring),
            });
        }
    }
    found
}

/// Stanzas of `Field: value`, with continuation lines that begin with white space.
fn deb822(text: &str) -> Vec<Archive> {
    let mut found = Vec::new();
    let mut stanza: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            found.extend(stanza_archives(&stanza));
            stanza.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((field, value)) = line.split_once(':') {
            stanza.push((field.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    found
}

fn stanza_archives(stanza: &[(String, String)]) -> Vec<Archive> {
    let field = |name: &str| {
        stanza
            .iter()
            .find(|(field, _)| field == name)
            .map_or("", |(_, value)| value.as_str())
    };
    let has = |name: &str, word: &str| field(name).split_whitespace().any(|w| w == word);
    if !has("types", "deb") || !has("components", "main") || field("enabled") == "no" {
        return Vec::new();
    }
    field("uris")
        .split_whitespace()
        .filter(|uri| {
            field("suites")
                .split_whitespace()
                .any(|s| is_debian(uri, s))
        })
        .map(|uri| Archive {
            uri: uri.to_owned(),
            keyring: keyring(field("signed-by")),
        })
        .collect()
}

/// Whether this is an archive that has all suites of Debian: security updates live elsewhere, and a
/// CD-ROM holds only what it holds.
fn is_debian(uri: &str, suite: &str) -> bool {
    let base = suite.split('-').next().unwrap_or_default();
    SUITES.contains(&base)
        && !suite.contains("security")
        && !suite.ends_with("/updates")
        && !uri.starts_with("cdrom:")
        && !suite.ends_with('/')
}

/// `Signed-By` may also hold a key itself or a fingerprint; only a file can be passed on.
fn keyring(signed_by: &str) -> Option<PathBuf> {
    let path = PathBuf::from(signed_by.split([',', ' ']).next().unwrap_or_default());
    path.is_absolute().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(uri: &str, keyring: Option<&str>) -> Archive {
        Archive {
            uri: uri.to_owned(),
            keyring: keyring.map(PathBuf::from),
        }
    }

    #[test]
    fn a_deb822_file_yields_the_archive_and_not_the_security_suite() {
        let text = "\
Types: deb deb-src
# a comment inside the stanza
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main

Types: deb
URIs: https://other.example/node_20.x
Suites: nodistro
Components: main";
        assert_eq!(
            deb822(text),
            [archive(
                "http://mirror.example/debian",
                Some("/usr/share/keyrings/debian-archive-keyring.gpg")
            )]
        );
    }

    #[test]
    fn a_one_line_file_yields_the_archive_with_its_keyring() {
        let text = "\
deb cdrom:[Debian GNU/Linux]/ trixie main
deb [arch=amd64 signed-by=/k.gpg] https://mirror.example/debian trixie main contrib # why
deb-src https://mirror.example/debian trixie main
# deb https://commented.example/debian trixie main
deb https://mirror.example/debian-security trixie-security main
deb https://other.example/apt cloud-sdk-bookworm main
deb https://flat.example/ ./";
        assert_eq!(
            one_line(text),
            [archive("https://mirror.example/debian", Some("/k.gpg"))]
        );
    }

    #[test]
    fn a_key_written_into_the_file_is_not_taken_for_a_path() {
        let text = "Types: deb\nURIs: http://m.example/debian\nSuites: trixie\nComponents: main\n\
                    Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc";
        assert_eq!(deb822(text), [archive("http://m.example/debian", None)]);
    }
}
