//! Which of the archive's kernels the lab takes.
//!
//! A Rust module fits a kernel only if it is compiled against exactly its sources and configuration
//! (the hashes in the names of Rust symbols are the only guard, Debian has no MODVERSIONS). So all
//! packages of the kernel must have one version, and while the archive updates they sometimes don't.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{LabError, Result};

/// The kernel series of the lab.
const SERIES: &str = "7.2";
/// The flavour: fewest drivers, so the fastest to boot under emulation.
const FLAVOUR: &str = "cloud-amd64";

/// A kernel of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelPackages {
    /// What `uname -r` says, for example `7.2.12+deb13-cloud-amd64`.
    pub release: String,
    /// Version of all its packages, for example `7.2.12-1~bpo13+1`.
    pub version: String,
}

impl KernelPackages {
    /// The names, out of all package names, that must be asked for their versions.
    pub fn names(pkgnames: &str) -> Vec<String> {
        let common = [source(), config()];
        pkgnames
            .lines()
            .map(str::trim)
            .filter(|name| common.iter().any(|c| c == name) || release_of(name).is_some())
            .map(str::to_owned)
            .collect()
    }

    /// The newest kernel whose packages are all there in one version, from what `apt-cache madison`
    /// printed (`package | version | origin` lines).
    ///
    /// # Errors
    /// [`LabError::NoKernel`].
    pub fn newest(madison: &str) -> Result<Self> {
        let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for line in madison.lines() {
            let mut fields = line.split('|').map(str::trim);
            if let (Some(name), Some(version)) = (fields.next(), fields.next()) {
                versions.entry(name).or_default().insert(version);
            }
        }
        let mut found: Vec<KernelPackages> = Vec::new();
        for name in versions.keys() {
            let Some(release) = name
                .strip_prefix("linux-binary-")
                .filter(|_| release_of(name).is_some())
            else {
                continue;
            };
            let needed = all_names(release);
            for version in &versions[name] {
                let complete = needed.iter().all(|n| {
                    versions
                        .get(n.as_str())
                        .is_some_and(|v| v.contains(version))
                });
                if complete {
                    found.push(KernelPackages {
                        release: release.to_owned(),
                        version: (*version).to_owned(),
                    });
                }
            }
        }
        found
            .into_iter()
            .max_by_key(|kernel| numbers(&kernel.version))
            .ok_or_else(|| LabError::NoKernel {
                series: SERIES,
                found: versions
                    .iter()
                    .map(|(name, v)| {
                        format!(
                            "{name}: {}",
                            v.iter().copied().collect::<Vec<_>>().join(" ")
                        )
                    })
                    .collect::<Vec<_>>()
                    .join("; "),
            })
    }

    /// The kernel of a binary package's name (`linux-image-RELEASE`, `linux-headers-RELEASE`, ..., or RELEASE alone), in
    /// this one's version: that of the source in the tree.
    ///
    /// # Errors
    /// [`LabError::OtherKernel`] if it is of another series.
    pub fn sibling(&self, package: &str) -> Result<Self> {
        let release = ["linux-image-", "linux-headers-", "linux-binary-"]
            .iter()
            .find_map(|prefix| package.strip_prefix(prefix))
            .unwrap_or(package);
        let is_release = release
            .strip_prefix(SERIES)
            .and_then(|rest| rest.strip_prefix('.')?.split_once('+'))
            .is_some_and(|(number, suffix)| {
                number.bytes().all(|b| b.is_ascii_digit()) && suffix.contains('-')
            });
        if !is_release {
            return Err(LabError::OtherKernel {
                package: package.to_owned(),
                series: SERIES,
                known: self.release.clone(),
            });
        }
        Ok(KernelPackages {
            release: release.to_owned(),
            version: self.version.clone(),
        })
    }

    /// The package with the hashes of the kernel's exported symbols, with its version.
    pub fn headers(&self) -> String {
        format!("linux-headers-{}={}", self.release, self.version)
    }

    /// What to install, with versions.
    pub fn packages(&self) -> Vec<String> {
        all_names(&self.release)
            .iter()
            .map(|name| format!("{name}={}", self.version))
            .collect()
    }

    /// Debian's suffix behind the upstream version, `+deb13-cloud-amd64`: the kernel build's
    /// `LOCALVERSION`.
    pub fn local_version(&self) -> &str {
        self.release
            .find('+')
            .map_or("", |plus| &self.release[plus..])
    }

    /// Name of the package that holds the source; also the name of the folder in its archive.
    pub fn source_name(&self) -> String {
        source()
    }

    /// Where the configuration lies in the tree.
    pub fn config_path(&self) -> String {
        // `+deb13-cloud-amd64`, and `+deb13-rt-amd64` for the realtime kernel.
        let flavour = self
            .local_version()
            .split_once('-')
            .map_or(FLAVOUR, |(_, flavour)| flavour);
        let (features, flavour) = match flavour.strip_prefix("rt-") {
            Some(flavour) => ("rt", flavour),
            None => ("none", flavour),
        };
        format!("/usr/src/{}/config.amd64_{features}_{flavour}.xz", config())
    }

    /// The form in which the tree remembers it.
    pub fn note(&self) -> String {
        format!("{} {}\n", self.release, self.version)
    }

    /// Reads [`KernelPackages::note`].
    pub fn from_note(note: &str) -> Option<Self> {
        let (release, version) = note.trim().split_once(' ')?;
        Some(KernelPackages {
            release: release.to_owned(),
            version: version.to_owned(),
        })
    }
}

fn source() -> String {
    format!("linux-source-{SERIES}")
}

fn config() -> String {
    format!("linux-config-{SERIES}")
}

fn all_names(release: &str) -> [String; 5] {
    [
        source(),
        config(),
        format!("linux-headers-{release}"),
        format!("linux-binary-{release}"),
        format!("linux-modules-{release}"),
    ]
}

/// The kernel release in the name of a package that belongs to one kernel of the series and flavour.
fn release_of(name: &str) -> Option<&str> {
    let release = ["linux-headers-", "linux-binary-", "linux-modules-"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))?;
    let rest = release.strip_prefix(SERIES)?.strip_prefix('.')?;
    let (number, suffix) = rest.split_once('+')?;
    let own = number.bytes().all(|b| b.is_ascii_digit())
        && suffix.strip_suffix(FLAVOUR)?.ends_with('-')
        && !suffix.contains("-rt-");
    own.then_some(release)
}

/// The numbers in a version, in order: enough to compare versions of one packaging scheme.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &str =
        "linux-source-7.2\nlinux-config-7.2\nlinux-binary-7.2.12+deb13-cloud-amd64\n\
        linux-binary-7.2.12+deb13-amd64\nlinux-headers-7.2.12+deb13-common\n\
        linux-headers-7.2.12+deb13-cloud-amd64\nlinux-binary-6.12.9+deb13-cloud-amd64\n";

    fn madison(lines: &[(&str, &str)]) -> String {
        lines
            .iter()
            .map(|(name, version)| format!("{name} | {version} | http://m.example trixie\n"))
            .collect()
    }

    fn complete(release: &str, version: &str) -> String {
        let names = all_names(release);
        madison(&names.each_ref().map(|name| (name.as_str(), version)))
    }

    #[test]
    fn only_packages_of_the_series_and_flavour_are_looked_at() {
        assert_eq!(
            KernelPackages::names(NAMES),
            [
                "linux-source-7.2",
                "linux-config-7.2",
                "linux-binary-7.2.12+deb13-cloud-amd64",
                "linux-headers-7.2.12+deb13-cloud-amd64"
            ]
        );
    }

    #[test]
    fn the_newest_complete_kernel_is_chosen_by_number_and_not_by_letter() -> Result<()> {
        let text = complete("7.2.9+deb13-cloud-amd64", "7.2.9-1~bpo13+1")
            + &complete("7.2.12+deb13-cloud-amd64", "7.2.12-1~bpo13+1");
        let kernel = KernelPackages::newest(&text)?;
        assert_eq!(kernel.version, "7.2.12-1~bpo13+1");
        assert_eq!(kernel.local_version(), "+deb13-cloud-amd64");
        assert_eq!(KernelPackages::from_note(&kernel.note()), Some(kernel));
        Ok(())
    }

    #[test]
    fn a_kernel_of_the_series_is_found_by_any_of_its_packages() -> Result<()> {
        let lab =
            KernelPackages::newest(&complete("7.2.12+deb13-cloud-amd64", "7.2.12-1~bpo13+1"))?;
        for (package, config) in [
            (
                "linux-image-7.2.12+deb13-amd64",
                "config.amd64_none_amd64.xz",
            ),
            (
                "linux-headers-7.2.12+deb13-cloud-amd64",
                "config.amd64_none_cloud-amd64.xz",
            ),
            ("7.2.12+deb13-rt-amd64", "config.amd64_rt_amd64.xz"),
        ] {
            let kernel = lab.sibling(package)?;
            assert_eq!(kernel.version, lab.version);
            assert!(
                kernel.config_path().ends_with(config),
                "{}",
                kernel.config_path()
            );
        }
        assert_eq!(
            lab.sibling("linux-image-7.2.12+deb13-amd64")?.headers(),
            "linux-headers-7.2.12+deb13-amd64=7.2.12-1~bpo13+1"
        );
        for other in [
            "linux-image-amd64",
            "linux-image-6.12.9+deb13-amd64",
            "7.2",
            "7.2.1",
        ] {
            let error = lab.sibling(other).map_err(|e| e.to_string());
            assert!(error.is_err_and(|text| text.contains(other)), "{other}");
        }
        Ok(())
    }

    #[test]
    fn a_kernel_whose_source_is_of_another_version_is_not_chosen() -> Result<()> {
        let new = complete("7.2.12+deb13-cloud-amd64", "7.2.12-1~bpo13+1")
            .replace("linux-source-7.2 | 7.2.12-1", "linux-source-7.2 | 7.2.13-1");
        assert!(matches!(
            KernelPackages::newest(&new),
            Err(LabError::NoKernel { .. })
        ));
        let both = new + &complete("7.2.9+deb13-cloud-amd64", "7.2.9-1~bpo13+1");
        assert_eq!(
            KernelPackages::newest(&both)?.release,
            "7.2.9+deb13-cloud-amd64"
        );
        Ok(())
    }
}
