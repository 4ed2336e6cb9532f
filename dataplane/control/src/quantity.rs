//! Quantities as people read and write them: decimal prefixes, few digits.

const PREFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];

/// Three digits, with a point where one belongs, and a decimal prefix:
/// `("4.64", "G")`. Below 1000 all digits and no prefix.
#[must_use]
pub fn rounded(count: u64) -> (String, &'static str) {
    let Some(power) = count.checked_ilog10().filter(|power| *power >= 3) else {
        return (count.to_string(), "");
    };
    let step = 10_u64.pow(power - 2);
    let three = count / step + u64::from(count % step >= step / 2);
    if three == 1000 {
        return rounded(1000 * step);
    }
    let decimals = 2 - power % 3;
    let point = 10_u64.pow(decimals);
    let digits = match decimals {
        0 => three.to_string(),
        _ => format!(
            "{}.{:0width$}",
            three / point,
            three % point,
            width = decimals as usize
        ),
    };
    (digits, PREFIXES[power as usize / 3])
}

/// The same to be followed by a unit: `12.5 k`, `10 M`, `7 `.
pub(crate) fn in_words(count: u64) -> String {
    let (digits, prefix) = rounded(count);
    let digits = match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => &digits,
    };
    format!("{digits} {prefix}")
}

/// A whole number with a decimal prefix behind it, or without: `20M`, `1.5k`.
///
/// # Errors
/// The rule in words.
pub fn parse_quantity(text: &str) -> Result<u64, &'static str> {
    const RULE: &str = "must be a number, with k, M, G, T or P behind it if need be, as 20M";
    let prefix = text.len() - usize::from(text.ends_with(|c: char| !c.is_ascii_digit()));
    let (number, prefix) = text.split_at_checked(prefix).ok_or(RULE)?;
    let power = PREFIXES[..6].iter().position(|known| *known == prefix);
    let mut decimals = 3 * power.ok_or(RULE)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) {
        return Err(RULE);
    }
    let fraction = fraction.trim_end_matches('0');
    decimals = decimals
        .checked_sub(fraction.len())
        .ok_or("must be a whole number, with its prefix")?;
    let digits: u64 = format!("{whole}{fraction}")
        .parse()
        .map_err(|_| "is too large")?;
    let power = u32::try_from(decimals)
        .ok()
        .and_then(|d| 10_u64.checked_pow(d));
    power
        .and_then(|power| digits.checked_mul(power))
        .ok_or("is too large")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_exactly() {
        for (text, value) in [
            ("0", 0),
            ("1500", 1500),
            ("20M", 20_000_000),
            ("1.5k", 1500),
            ("1.50G", 1_500_000_000),
            ("0.001k", 1),
            ("1.0", 1),
            ("2.5T", 2_500_000_000_000),
            ("1P", 1_000_000_000_000_000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_quantity(text), Ok(value), "{text}");
        }
        for (text, needle) in [
            ("", "number"),
            ("M", "number"),
            ("20m", "number"),
            ("20K", "number"),
            ("20Mi", "number"),
            ("20 M", "number"),
            ("-1", "number"),
            ("+1", "number"),
            ("1e7", "number"),
            ("1.2.3", "number"),
            (".5M", "number"),
            ("1.M", "number"),
            ("20\u{b5}", "number"),
            ("1E", "number"),
            ("1.5", "whole"),
            ("1.0005k", "whole"),
            ("18446744073709551616", "too large"),
            ("99999P", "too large"),
        ] {
            let error = parse_quantity(text).unwrap_err();
            assert!(error.contains(needle), "{text}: {error}");
        }
    }

    #[test]
    fn counts_keep_three_digits() {
        for (count, expected) in [
            (0, ("0", "")),
            (999, ("999", "")),
            (1000, ("1.00", "k")),
            (9999, ("10.0", "k")),
            (12_345, ("12.3", "k")),
            (999_499, ("999", "k")),
            (999_500, ("1.00", "M")),
            (4_640_000_000, ("4.64", "G")),
            (u64::MAX, ("18.4", "E")),
        ] {
            let (digits, prefix) = rounded(count);
            assert_eq!((digits.as_str(), prefix), expected, "{count}");
        }
    }

    #[test]
    fn words_need_no_noughts() {
        for (count, words) in [
            (7, "7 "),
            (100, "100 "),
            (10_000_000, "10 M"),
            (12_500, "12.5 k"),
            (100_000, "100 k"),
            (1_234_567, "1.23 M"),
        ] {
            assert_eq!(in_words(count), words);
        }
    }
}
