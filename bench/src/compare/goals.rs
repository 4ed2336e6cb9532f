//! The figures that Sluice must show, and whether it does.

use serde::{Deserialize, Serialize};

use super::measure::{Better, Measure};
use crate::stats::Estimate;

/// A figure with its goals: ratios, or values where it is against nobody.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Goal {
    pub(crate) figure: String,
    pub(crate) case: String,
    /// Labels of the arms.
    pub(crate) of: String,
    pub(crate) against: Option<String>,
    pub(crate) measure: Measure,
    /// In the same placement.
    pub(crate) same: f64,
    /// The same, where we want to be.
    pub(crate) stretch: Option<f64>,
    /// Each design in its best placement.
    pub(crate) best: Option<f64>,
}

/// What became of a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// The interval's bad end reaches the stretch goal.
    Stretch,
    /// The interval's bad end reaches the goal.
    Holds,
    /// The value reaches the goal, the interval's bad end does not.
    Unsure,
    /// The value does not reach the goal.
    Missed,
}

impl Verdict {
    /// Whether a measured figure reaches a goal.
    pub(crate) fn of(measured: &Estimate, better: Better, goal: f64, stretch: Option<f64>) -> Self {
        let reaches = |value: f64, goal: f64| match better {
            Better::Higher => value >= goal,
            Better::Lower => value <= goal,
        };
        let bad_end = match better {
            Better::Higher => measured.low,
            Better::Lower => measured.high,
        };
        match stretch {
            Some(stretch) if reaches(bad_end, stretch) => Self::Stretch,
            _ if reaches(bad_end, goal) => Self::Holds,
            _ if reaches(measured.value, goal) => Self::Unsure,
            _ => Self::Missed,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stretch => "holds, stretch too",
            Self::Holds => "holds",
            Self::Unsure => "not sure",
            Self::Missed => "missed",
        }
    }
}

/// The goals of `goals.json`.
///
/// # Errors
/// The file, which is part of the program, is no list of goals.
pub(crate) fn all() -> Result<Vec<Goal>, serde_json::Error> {
    serde_json::from_str(include_str!("goals.json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::cases;

    fn measured(low: f64, value: f64, high: f64) -> Estimate {
        Estimate {
            value,
            low,
            high,
            n: 15,
        }
    }

    #[test]
    fn the_bad_end_decides() {
        let higher =
            |low, value| Verdict::of(&measured(low, value, 9.0), Better::Higher, 2.5, Some(3.0));
        assert_eq!(higher(3.0, 3.2), Verdict::Stretch);
        assert_eq!(higher(2.5, 3.2), Verdict::Holds);
        assert_eq!(higher(2.49, 3.2), Verdict::Unsure);
        assert_eq!(higher(2.0, 2.4), Verdict::Missed);
        let lower =
            |value, high| Verdict::of(&measured(0.1, value, high), Better::Lower, 1.0, Some(0.5));
        assert_eq!(lower(0.4, 0.5), Verdict::Stretch);
        assert_eq!(lower(0.4, 1.0), Verdict::Holds);
        assert_eq!(lower(0.9, 1.01), Verdict::Unsure);
        assert_eq!(lower(1.1, 1.2), Verdict::Missed);
    }

    #[test]
    fn every_goal_has_its_case_and_arms() {
        let cases = cases::all();
        for goal in all().unwrap() {
            let case = cases.iter().find(|case| case.id == goal.case);
            let labels: Vec<_> = case
                .unwrap_or_else(|| panic!("{goal:?}"))
                .arms
                .iter()
                .map(cases::Arm::label)
                .collect();
            assert!(labels.contains(&goal.of), "{goal:?}");
            let against = goal.against.iter();
            for label in against {
                assert!(labels.contains(label), "{goal:?}");
            }
        }
    }
}
