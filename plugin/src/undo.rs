//! Undoing a half-done ADD.

use crate::error::Error;

type Reversal<'a> = Box<dyn FnOnce() -> Result<(), Error> + 'a>;

/// A stack of reversals, run from the last to the first unless committed.
///
/// A reversal is pushed *before* its step is taken: a step that fails may have
/// done half its work, and all reversals succeed where there is nothing to do.
#[derive(Default)]
pub(crate) struct Undo<'a> {
    reversals: Vec<Reversal<'a>>,
}

impl<'a> Undo<'a> {
    /// Remembers how to reverse the step about to be taken.
    pub(crate) fn push(&mut self, reversal: impl FnOnce() -> Result<(), Error> + 'a) {
        self.reversals.push(Box::new(reversal));
    }

    /// Keeps what was done if `outcome` is a success; else reverses all of it
    /// and adds what could not be reversed to the error, never in its place.
    pub(crate) fn settle<T>(self, outcome: Result<T, Error>) -> Result<T, Error> {
        outcome.map_err(|error| {
            let reversals = self.reversals.into_iter().rev();
            reversals.fold(error, |error, reversal| match reversal() {
                Ok(()) => error,
                Err(failure) => error.and(format!("undoing this: {failure}")),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn settled(outcome: Result<(), Error>) -> (Vec<u32>, Result<(), Error>) {
        let done = RefCell::new(Vec::new());
        let mut undo = Undo::default();
        for step in 1..=3 {
            let done = &done;
            undo.push(move || {
                done.borrow_mut().push(step);
                match step {
                    2 => Err(Error::conflict("stuck")),
                    _ => Ok(()),
                }
            });
        }
        let outcome = undo.settle(outcome);
        (done.into_inner(), outcome)
    }

    #[test]
    fn a_failure_reverses_all_from_the_last_and_stays_the_error() {
        let (done, outcome) = settled(Err(Error::ipam("first")));
        assert_eq!(done, [3, 2, 1]);
        let expected = Error::ipam("first").and("undoing this: stuck");
        assert_eq!(outcome, Err(expected));
    }

    #[test]
    fn a_success_reverses_nothing() {
        assert_eq!(settled(Ok(())), (vec![], Ok(())));
    }
}
