//! The tester, tested: what is done to packets on their way is what it says.
//!
//! Needs root, and fails without: a test that skips itself proves nothing.

mod faults;
mod injector;
mod rfc2544;
mod rig;
mod scripts;
