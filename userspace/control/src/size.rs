// SPDX-License-Identifier: GPL-2.0
//! Sizes as people write them: `128M`, `2G`, `4096`. Units are powers of 1024.

/// Parses a size into bytes. The error says what would be right.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!("\"{text}\" is not a size; give a number of bytes, or one with K, M, G or T (powers of 1024), such as 128M")
    };
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("\"{text}\" is too large"))
}

/// Shows a size in the largest unit that keeps at least one digit before the point.
pub fn show(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value.fract() == 0.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, bytes) in [
            ("4096", 4096),
            ("64K", 64 << 10),
            ("128M", 128 << 20),
            ("128MiB", 128 << 20),
            ("2G", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_quoted_with_an_example() {
        for text in ["", "M", "12X", "1.5G", "-1", "12 M", "0x10", "1é"] {
            let error = parse(text).expect_err(text);
            assert!(
                error.contains(&format!("\"{text}\"")) && error.contains("128M"),
                "{error}"
            );
        }
        assert!(parse("99999999999T")
            .expect_err("more than 2^64")
            .contains("too large"));
    }

    #[test]
    fn sizes_are_shown_with_their_unit() {
        assert_eq!(show(0), "0 B");
        assert_eq!(show(128 << 20), "128 MiB");
        assert_eq!(show(1536), "1.5 KiB");
        assert_eq!(show(5 << 40), "5 TiB");
    }
}
