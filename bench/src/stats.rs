//! Medians, percentiles, and how sure they are.

use serde::{Deserialize, Serialize};

/// How often samples are drawn anew for an interval.
const DRAWS: usize = 4000;

/// The interval of fewer says nothing.
pub(crate) const LEAST: usize = 3;

/// A statistic with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Estimate {
    /// The statistic of all samples.
    pub(crate) value: f64,
    /// The interval's lower end.
    pub(crate) low: f64,
    /// The interval's upper end.
    pub(crate) high: f64,
    /// How many samples, or pairs, it is made of.
    pub(crate) n: usize,
}

/// The value in the middle; of an even count, between the middle two.
/// Nothing of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The smallest value that `percent` of all do not exceed (nearest rank).
/// Nothing of nothing.
pub(crate) fn percentile(values: &[f64], percent: u8) -> Option<f64> {
    let sorted = sorted(values);
    let rank = (sorted.len() * usize::from(percent)).div_ceil(100);
    sorted.get(rank.max(1) - 1).copied()
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

/// The median of values, bootstrapped. Nothing of nothing.
pub(crate) fn bootstrapped_median(values: &[f64], seed: u64) -> Option<Estimate> {
    bootstrap(values.len(), seed, |drawn| {
        let drawn: Vec<_> = drawn.iter().map(|index| values[*index]).collect();
        median(&drawn)
    })
}

/// The median of the pairs' ratios, bootstrapped over the pairs. Nothing
/// without pairs.
///
/// The ratio is taken within the pair, since both of a pair ran in the same
/// placement of the cores more often than not.
pub(crate) fn paired_ratio(pairs: &[(f64, f64)], seed: u64) -> Option<Estimate> {
    let ratios: Vec<_> = pairs.iter().map(|(ours, theirs)| ours / theirs).collect();
    bootstrapped_median(&ratios, seed)
}

/// What a round has of each side.
type Pools = (Vec<f64>, Vec<f64>);

/// The ratio of the two pools' percentiles, bootstrapped over the pairs of
/// pools: for percentiles that one round has too few values for.
pub(crate) fn pooled_ratio(pairs: &[Pools], percent: u8, seed: u64) -> Option<Estimate> {
    let pooled = |drawn: &[usize], side: fn(&Pools) -> &Vec<f64>| {
        let values = drawn.iter().flat_map(|index| side(&pairs[*index]));
        percentile(&values.copied().collect::<Vec<_>>(), percent)
    };
    bootstrap(pairs.len(), seed, |drawn| {
        Some(pooled(drawn, |pair| &pair.0)? / pooled(drawn, |pair| &pair.1)?)
    })
}

/// The percentile bootstrap: the statistic of as many samples as there are,
/// drawn with replacement, again and again; the middle 95 % of what comes out.
/// `statistic` is given the drawn samples' indices.
fn bootstrap(
    count: usize,
    seed: u64,
    statistic: impl Fn(&[usize]) -> Option<f64>,
) -> Option<Estimate> {
    let mut indices: Vec<_> = (0..count).collect();
    let value = statistic(&indices)?;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut draws = Vec::with_capacity(DRAWS);
    for _ in 0..DRAWS {
        indices.fill_with(|| random.usize(..count));
        draws.extend(statistic(&indices));
    }
    draws.sort_unstable_by(f64::total_cmp);
    Some(Estimate {
        value,
        low: draws[draws.len() * 25 / 1000],
        high: draws[(draws.len() * 975 / 1000).min(draws.len() - 1)],
        n: count,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let hundred: Vec<_> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&hundred, 50), Some(50.0));
        assert_eq!(percentile(&hundred, 99), Some(99.0));
        assert_eq!(percentile(&hundred, 100), Some(100.0));
        assert_eq!(percentile(&[3.0], 1), Some(3.0));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn equal_samples_leave_no_doubt() {
        let estimate = paired_ratio(&[(3.0, 2.0); 15], 1).unwrap();
        let (value, n) = (1.5, 15);
        let sure = Estimate {
            value,
            low: value,
            high: value,
            n,
        };
        assert_eq!(estimate, sure);
        assert_eq!(paired_ratio(&[], 1), None);
    }

    #[test]
    fn a_pairs_own_ratio_counts() {
        // The machine is ten times slower in every second pair.
        let pairs: Vec<_> = (0..20)
            .map(|i| if i % 2 == 0 { (3.0, 2.0) } else { (0.3, 0.2) })
            .collect();
        let estimate = paired_ratio(&pairs, 1).unwrap();
        assert!((estimate.low - 1.5).abs() < 1e-9 && (estimate.high - 1.5).abs() < 1e-9);
    }

    #[test]
    fn pools_are_made_before_the_percentile_is_taken() {
        let slow_once = |round: u32| if round == 0 { 50.0 } else { 1.0 };
        let pairs: Vec<_> = (0..20)
            .map(|round| (vec![1.0; 10], vec![slow_once(round); 10]))
            .collect();
        let estimate = pooled_ratio(&pairs, 99, 1).unwrap();
        assert!((estimate.value - 0.02).abs() < 1e-9, "{estimate:?}");
        assert!((estimate.high - 1.0).abs() < 1e-9, "{estimate:?}");
        assert_eq!(pooled_ratio(&[], 99, 1), None);
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let values: Vec<_> = (0..15).map(f64::from).collect();
        assert_eq!(
            bootstrapped_median(&values, 7),
            bootstrapped_median(&values, 7)
        );
    }

    /// Of intervals of 15 pairs about 95 % hold the true median: skewed
    /// samples, as times are.
    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        const TRIALS: u64 = 300;
        let mut random = fastrand::Rng::with_seed(11);
        // exp of a sum of uniforms about zero: its median is 1.
        let mut skewed = || {
            let sum: f64 = (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
            (0.4 * sum).exp()
        };
        let held = (0..TRIALS).filter(|trial| {
            let pairs: Vec<_> = (0..15).map(|_| (skewed(), 1.0)).collect();
            let estimate = paired_ratio(&pairs, *trial).unwrap();
            (estimate.low..=estimate.high).contains(&1.0)
        });
        let held = held.count();
        assert!((273..=297).contains(&held), "{held} of {TRIALS}");
    }
}
