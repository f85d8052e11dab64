//! What changed between two runs.

use std::fmt::Write;

use super::results::{number, Results};

/// Smaller changes than this share of the earlier value are as good as none.
const NOISE: f64 = 0.01;

/// A line for each figure that changed, came or went.
pub fn table(before: &Results, after: &Results) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    for (group, name, now) in after.iter() {
        let line = match before.get(group, name) {
            None => format!("new: {}", number(now.value)),
            Some(then) if (now.value - then).abs() <= NOISE * then.abs() => continue,
            Some(then) => {
                let change = (now.value - then) / then * 100.0;
                let values = format!("{} -> {}", number(then), number(now.value));
                format!("{values} ({change:+.1} %)")
            }
        };
        let _ = writeln!(text, "{group}, {name}: {line}");
    }
    for (group, name, then) in before.iter() {
        if after.get(group, name).is_none() {
            let _ = writeln!(text, "{group}, {name}: gone (was {})", number(then.value));
        }
    }
    if text.is_empty() {
        text.push_str("no figure changed by more than 1 %\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_named_and_noise_is_not() {
        let (mut before, mut after) = (Results::default(), Results::default());
        for (name, then, now) in [("same", 1000.0, 1005.0), ("less", 1000.0, 800.0)] {
            before.add("ticks", name, then);
            after.add("ticks", name, now);
        }
        before.add("ticks", "old", 1.0);
        after.add("ticks", "young", 2.0);
        let text = table(&before, &after);
        assert!(text.contains("less: 1000 -> 800 (-20.0 %)"), "{text}");
        assert!(text.contains("old: gone (was 1)"), "{text}");
        assert!(text.contains("young: new: 2"), "{text}");
        assert!(!text.contains("same"), "{text}");
        assert!(table(&before, &before).starts_with("no figure"));
    }
}
