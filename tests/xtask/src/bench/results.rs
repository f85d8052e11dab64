//! Results of one run: figures by group and name, as a table and as a file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{file, Error, Result};

/// One figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Its value.
    pub value: f64,
    /// At most this is the goal, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<f64>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Results {
    /// Figures by group (which names the unit) and name.
    groups: BTreeMap<String, BTreeMap<String, Figure>>,
}

/// Name for the results of a run that ends now.
pub fn file_name() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("bench-{}.json", now.as_secs())
}

impl Results {
    /// Adds a figure without a goal.
    pub fn add(&mut self, group: &str, name: &str, value: f64) {
        self.insert(group, name, Figure { value, goal: None });
    }

    /// Adds a figure that is to be at most `goal`.
    pub fn add_with_goal(&mut self, group: &str, name: &str, value: f64, goal: f64) {
        let goal = Some(goal);
        self.insert(group, name, Figure { value, goal });
    }

    fn insert(&mut self, group: &str, name: &str, figure: Figure) {
        self.groups
            .entry(group.to_owned())
            .or_default()
            .insert(name.to_owned(), figure);
    }

    /// All figures: group, name, figure.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, Figure)> {
        self.groups.iter().flat_map(|(group, figures)| {
            figures
                .iter()
                .map(move |(name, figure)| (group.as_str(), name.as_str(), *figure))
        })
    }

    /// A figure's value.
    pub fn get(&self, group: &str, name: &str) -> Option<f64> {
        Some(self.groups.get(group)?.get(name)?.value)
    }

    /// Writes them to a file, and its folder if need be.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn save(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(file("can't make", folder))?;
        }
        let json =
            serde_json::to_vec_pretty(self).map_err(|e| file("can't write", path)(e.into()))?;
        fs::write(path, json).map_err(file("can't write", path))
    }

    /// Reads those of an earlier run.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Usage`] if the file holds something else.
    pub fn load(path: &Path) -> Result<Self> {
        let json = fs::read(path).map_err(file("can't read", path))?;
        serde_json::from_slice(&json).map_err(|e| {
            Error::Usage(format!(
                "{} is not a file of results ({e}); `cargo xtask bench` says where it keeps them",
                path.display()
            ))
        })
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (group, figures) in &self.groups {
            writeln!(f, "\n{group}")?;
            for (name, figure) in figures {
                write!(f, "  {name:<36}{:>14}", number(figure.value))?;
                match figure.goal {
                    Some(goal) if figure.value <= goal => {
                        writeln!(f, "   (goal: {}, reached)", number(goal))?;
                    }
                    Some(goal) => writeln!(f, "   (goal: {}, missed)", number(goal))?,
                    None => writeln!(f)?,
                }
            }
        }
        Ok(())
    }
}

/// A value with the digits that mean something.
pub fn number(value: f64) -> String {
    if value.fract() == 0.0 || value.abs() >= 1000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_back_what_was_saved_and_other_files_are_refused() {
        let folder = std::env::temp_dir().join(format!("pvmm-results-{}", std::process::id()));
        let path = folder.join("a.json");
        let mut results = Results::default();
        results.add("ticks", "cpuid", 700.0);
        results.add_with_goal("ratio", "compute", 1.01, 1.03);
        results.save(&path).expect("a folder for temporary files");
        assert_eq!(Results::load(&path).expect("it was saved"), results);
        fs::write(&path, "[]").expect("the folder is there");
        let error = Results::load(&path)
            .expect_err("a list is none")
            .to_string();
        assert!(error.contains("a.json") && error.contains("not a file of results"));
        fs::remove_dir_all(&folder).expect("it is ours");
    }

    #[test]
    fn the_table_says_whether_a_goal_is_reached() {
        let mut results = Results::default();
        results.add_with_goal("g", "a", 2.0, 1.5);
        results.add_with_goal("g", "b", 1.0, 1.5);
        let table = results.to_string();
        assert!(table.contains("(goal: 1.500, missed)"), "{table}");
        assert!(table.contains("(goal: 1.500, reached)"), "{table}");
    }
}
