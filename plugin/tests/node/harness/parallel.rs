//! The same job many times, several at a time.

use std::sync::Mutex;
use std::thread;

/// Does `job` for each of `items`, `at_once` of them at a time. The results
/// come in no order.
pub(crate) fn in_parallel<T: Send, R: Send>(
    at_once: usize,
    items: impl IntoIterator<IntoIter: Send, Item = T>,
    job: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let items = Mutex::new(items.into_iter());
    let results = Mutex::new(Vec::new());
    let next = || items.lock().unwrap().next();
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(item) = next() {
                    let result = job(item);
                    results.lock().unwrap().push(result);
                }
            });
        }
    });
    results.into_inner().unwrap()
}
