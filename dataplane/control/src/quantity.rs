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

#[cfg(test)]
mod tests {
    use super::*;

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
