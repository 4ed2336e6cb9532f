//! From samples to rows.

use std::collections::BTreeMap;

use super::cases::Case;
use super::goals::{Goal, Verdict};
use super::measure::{Better, Measure};
use crate::report::{
    ArmReport, CaseReport, Comparison, Distance, GoalRow, Measured, Problem, Sample, Scope,
};
use crate::stats::{Estimate, bootstrapped_median, median, paired_ratio, percentile, pooled_ratio};

/// Intervals come out the same of the same samples.
const SEED: u64 = 2544;

/// A case's rows. `samples` are the arms', `problems` what went wrong.
pub(crate) fn case(case: &Case, samples: Vec<Vec<Sample>>, problems: Vec<Problem>) -> CaseReport {
    let arms: Vec<_> = case
        .arms
        .iter()
        .zip(samples)
        .map(|(arm, samples)| ArmReport {
            label: arm.label(),
            placement: arm.placement,
            medians: medians(&samples),
            samples,
        })
        .collect();
    CaseReport {
        id: case.id.to_owned(),
        title: case.title.to_owned(),
        plotted: case.plotted(),
        comparisons: comparisons(case, &arms),
        arms,
        problems,
    }
}

fn medians(samples: &[Sample]) -> BTreeMap<Measure, f64> {
    let mut columns: BTreeMap<Measure, Vec<f64>> = BTreeMap::new();
    for sample in samples {
        for (measure, value) in &sample.values {
            columns.entry(*measure).or_default().push(*value);
        }
        for (measure, values) in &sample.pools {
            columns.entry(*measure).or_default().extend(values);
        }
    }
    let middle = |(measure, values): (Measure, Vec<f64>)| {
        let value = match measure.pooled_percentile() {
            Some(percent) => percentile(&values, percent),
            None => median(&values),
        };
        Some((measure, value?))
    };
    columns.into_iter().filter_map(middle).collect()
}

fn comparisons(case: &Case, arms: &[ArmReport]) -> Vec<Comparison> {
    let mut rows = vec![];
    for [ours, theirs] in &case.comparisons {
        let measures = arms[*ours].medians.keys().copied();
        for measure in measures.filter(|measure| measure.is_compared()) {
            let mut compare = |scope, [one, other]: [usize; 2]| {
                rows.extend(
                    measured_ratio(&arms[one], &arms[other], measure).map(|ratio| Comparison {
                        of: arms[one].label.clone(),
                        against: arms[other].label.clone(),
                        scope,
                        placements: [arms[one].placement, arms[other].placement],
                        measure,
                        ratio,
                    }),
                );
            };
            compare(Scope::Same, [*ours, *theirs]);
            if placements(case, *theirs).count() > 1 {
                let best = [*ours, *theirs].map(|arm| {
                    let placements = placements(case, arm);
                    placements.fold(arm, |best, other| better(arms, [best, other], measure))
                });
                compare(Scope::Best, best);
            }
        }
    }
    rows
}

/// The same design's arms, in all placements that the case has.
fn placements(case: &Case, arm: usize) -> impl Iterator<Item = usize> {
    let spec = case.arms[arm].spec;
    let arms = case.arms.iter().enumerate();
    arms.filter_map(move |(index, arm)| (arm.spec == spec).then_some(index))
}

/// The better of two arms by its median.
fn better(arms: &[ArmReport], [one, other]: [usize; 2], measure: Measure) -> usize {
    let [a, b] = [one, other].map(|arm| arms[arm].medians.get(&measure).copied());
    let other_is_better = match (a, b, measure.better()) {
        (Some(a), Some(b), Better::Higher) => b > a,
        (Some(a), Some(b), Better::Lower) => b < a,
        (_, b, _) => b.is_some(),
    };
    if other_is_better { other } else { one }
}

/// The ratio over all rounds that both have, and over those on near and on far
/// cores.
fn measured_ratio(ours: &ArmReport, theirs: &ArmReport, measure: Measure) -> Option<Measured> {
    let pairs: Vec<_> = ours
        .samples
        .iter()
        .filter_map(|sample| {
            let mut others = theirs.samples.iter();
            let other = others.find(|other| other.round == sample.round)?;
            Some((sample, other))
        })
        .collect();
    let ratio = |distance: Option<Distance>| {
        let mut pairs = pairs.clone();
        if let Some(distance) = distance {
            pairs.retain(|(a, b)| a.distance() == distance && b.distance() == distance);
        }
        estimate(&pairs, measure)
    };
    Some(Measured {
        all: ratio(None)?,
        near: ratio(Some(Distance::Near)),
        far: ratio(Some(Distance::Far)),
    })
}

fn estimate(pairs: &[(&Sample, &Sample)], measure: Measure) -> Option<Estimate> {
    if let Some(percent) = measure.pooled_percentile() {
        let pools: Vec<_> = pairs
            .iter()
            .filter_map(|(a, b)| {
                Some((
                    a.pools.get(&measure)?.clone(),
                    b.pools.get(&measure)?.clone(),
                ))
            })
            .collect();
        return pooled_ratio(&pools, percent, SEED);
    }
    let values: Vec<_> = pairs
        .iter()
        .filter_map(|(a, b)| Some((*a.values.get(&measure)?, *b.values.get(&measure)?)))
        .collect();
    paired_ratio(&values, SEED)
}

/// What became of the goals.
pub(crate) fn goals(goals: &[Goal], cases: &[CaseReport]) -> Vec<GoalRow> {
    let mut rows = vec![];
    for goal in goals {
        let case = cases.iter().find(|case| case.id == goal.case);
        let mut row = |scope, value, stretch| {
            let measured = case.and_then(|case| measured(goal, case, scope));
            let verdict = measured
                .map(|measured| Verdict::of(&measured.all, goal.measure.better(), value, stretch));
            rows.push(GoalRow {
                figure: goal.figure.clone(),
                against: goal.against.clone(),
                scope,
                measure: goal.measure,
                goal: value,
                stretch,
                measured,
                verdict,
            });
        };
        row(Scope::Same, goal.same, goal.stretch);
        if let Some(best) = goal.best {
            row(Scope::Best, best, None);
        }
    }
    rows
}

fn measured(goal: &Goal, case: &CaseReport, scope: Scope) -> Option<Measured> {
    let Some(against) = &goal.against else {
        let arm = case.arms.iter().find(|arm| arm.label == goal.of)?;
        return absolute(arm, goal.measure);
    };
    let fits = |row: &&Comparison| {
        row.of == goal.of && row.against == *against && row.measure == goal.measure
    };
    let mut rows = case.comparisons.iter().filter(fits);
    // Where there is one placement only, it is the best.
    let last = rows.clone().next_back();
    rows.find(|row| row.scope == scope)
        .or(last)
        .map(|row| row.ratio)
}

fn absolute(arm: &ArmReport, measure: Measure) -> Option<Measured> {
    let median = |distance: Option<Distance>| {
        let samples = arm.samples.iter();
        let fitting = samples.filter(|sample| distance.is_none_or(|d| d == sample.distance()));
        let values: Vec<_> = fitting
            .filter_map(|sample| sample.values.get(&measure).copied())
            .collect();
        bootstrapped_median(&values, SEED)
    };
    Some(Measured {
        all: median(None)?,
        near: median(Some(Distance::Near)),
        far: median(Some(Distance::Far)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::cases::{Arm, Placement};
    use crate::compare::catalogue;
    use crate::topology::Design;

    fn sample(round: u32, cores: [f64; 2], received: f64) -> Sample {
        Sample {
            round,
            cores,
            values: BTreeMap::from([(Measure::Received, received)]),
            pools: BTreeMap::new(),
        }
    }

    fn of(id: &str) -> Case {
        catalogue::named(&[id.to_owned()]).unwrap().remove(0)
    }

    /// Sluice, `bridge + portmap`, and the same together.
    fn three(rows: [[f64; 4]; 3]) -> CaseReport {
        let distances = [[80.0, 90.0], [400.0, 500.0], [90.0, 400.0], [80.0, 80.0]];
        let samples = rows.map(|row| {
            let rounds = (0..).zip(distances).zip(row);
            rounds
                .map(|((round, cores), value)| sample(round, cores, value))
                .collect()
        });
        case(&of("udp-hostport"), samples.into(), vec![])
    }

    #[test]
    fn pairs_on_near_and_on_far_cores_are_apart() {
        let report = three([[3.0, 8.0, 50.0, 3.0], [1.0, 2.0, 1.0, 1.0], [1.0; 4]]);
        let same = &report.comparisons[0];
        assert_eq!(
            (same.scope, same.placements),
            (Scope::Same, [Placement::Apart; 2])
        );
        assert_eq!(same.ratio.all.value, 3.5);
        assert_eq!(same.ratio.all.n, 4);
        let near = same.ratio.near.unwrap();
        assert_eq!((near.value, near.n), (3.0, 2));
        let far = same.ratio.far.unwrap();
        assert_eq!((far.value, far.n), (4.0, 1));
    }

    #[test]
    fn the_best_is_against_the_others_better_placement() {
        let report = three([[6.0; 4], [1.0; 4], [2.0; 4]]);
        let best = &report.comparisons[1];
        assert_eq!(
            (best.scope, best.placements),
            (Scope::Best, [Placement::Apart, Placement::Together])
        );
        assert_eq!(best.ratio.all.value, 3.0);
        let report = three([[6.0; 4], [2.0; 4], [1.0; 4]]);
        let best = &report.comparisons[1];
        assert_eq!(
            (best.scope, best.placements),
            (Scope::Best, [Placement::Apart; 2])
        );
        assert_eq!(best.ratio.all.value, 3.0);
    }

    #[test]
    fn the_best_is_of_our_better_placement_too() {
        let case_of = of("udp-rr");
        let values = |arm: &Arm| match (arm.spec.design, arm.placement) {
            (Design::Sluice, Placement::Apart) => 40.0,
            (Design::Sluice, Placement::Together) => 30.0,
            (Design::Sluice, Placement::OneCpu) => 25.0,
            (_, Placement::Apart) => 60.0,
            (_, Placement::Together) => 20.0,
            (_, Placement::OneCpu) => 3000.0,
        };
        let samples = case_of.arms.iter().map(|arm| {
            let mut sample = sample(0, [80.0; 2], 0.0);
            sample.values = BTreeMap::from([(Measure::P50, values(arm))]);
            vec![sample]
        });
        let report = case(&case_of, samples.collect(), vec![]);
        let best = report
            .comparisons
            .iter()
            .find(|row| (row.scope, row.against.as_str()) == (Scope::Best, "bridge"));
        let best = best.unwrap();
        assert_eq!(best.placements, [Placement::OneCpu, Placement::Together]);
        assert_eq!(best.ratio.all.value, 1.25);
    }

    #[test]
    fn a_round_that_one_of_them_missed_is_no_pair() {
        let samples = vec![
            vec![sample(0, [80.0; 2], 2.0), sample(1, [80.0; 2], 9.0)],
            vec![sample(0, [80.0; 2], 1.0), sample(2, [80.0; 2], 1.0)],
            vec![],
        ];
        let report = case(&of("udp-hostport"), samples, vec![]);
        assert_eq!(report.comparisons[0].ratio.all.n, 1);
        assert_eq!(report.comparisons[0].ratio.all.value, 2.0);
    }

    #[test]
    fn goals_find_their_rows() {
        let report = three([[6.0; 4], [1.0; 4], [2.5; 4]]);
        let all = super::super::goals::all().unwrap();
        let rows = goals(&all, &[report]);
        let of_case = |scope| {
            let mut rows = rows.iter();
            let row = rows.find(|row| row.figure.contains("hostPort") && row.scope == scope);
            row.unwrap()
        };
        assert_eq!(of_case(Scope::Same).verdict, Some(Verdict::Stretch));
        assert_eq!(of_case(Scope::Best).verdict, Some(Verdict::Missed));
        let unmeasured = rows.iter().find(|row| row.figure.starts_with("CPU"));
        assert_eq!(unmeasured.unwrap().verdict, None);
    }
}
