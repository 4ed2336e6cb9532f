//! What the pods need of the host's netfilter: one nftables table of our own,
//! and connections forgotten when mappings change.

mod conntrack;
mod nft;
mod ruleset;
mod watch;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

pub use conntrack::{Stale, Translated, forget, translated};
pub use nft::Nft;
pub use ruleset::{PodRules, Ruleset, TABLE};

use nft::Port;
use watch::Watch;

/// Why the rules are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum NetfilterError {
    /// There is no nft program.
    #[error(
        "run nft for hostPorts and ipMasq: {0}; install nftables (Debian: apt-get install nftables)"
    )]
    Missing(io::Error),
    /// The nft program could not be run, or did not end.
    #[error("run nft for hostPorts and ipMasq: {0}")]
    Run(io::Error),
    /// The nft program, or the kernel behind it, refused.
    #[error("change the nftables table inet {TABLE}: nft answered {status}: {stderr}")]
    Refused {
        /// nft's exit status.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// The kernel does not notify.
    #[error("watch nftables for changes: {0}; does this kernel have nf_tables?")]
    Watch(io::Error),
}

/// The table in the kernel, kept as the pods need it: one transaction a change,
/// of its size and not the table's. It stays there whatever becomes of this: an
/// earlier daemon's until [`Netfilter::apply`], ours for the next one.
#[derive(Debug)]
pub struct Netfilter {
    ruleset: Ruleset,
    watch: Watch,
    /// Whether the kernel has what `ruleset` says, as far as we know.
    is_applied: bool,
}

impl Netfilter {
    /// Rules for nobody, not applied yet, for the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel does not notify of changes.
    pub fn new() -> Result<Self, NetfilterError> {
        Ok(Self {
            ruleset: Ruleset::new(true),
            watch: Watch::open().map_err(NetfilterError::Watch)?,
            is_applied: false,
        })
    }

    /// Takes in the rules of a pod that an earlier daemon served; they come
    /// with [`Netfilter::apply`].
    pub fn expect(&mut self, pod: &PodRules) {
        self.ruleset.add(pod);
    }

    /// Makes the table what it should be, in one transaction and in place of
    /// the one that is there; if nobody needs it there is none.
    ///
    /// # Errors
    /// nft failed; then nothing has changed.
    pub fn apply(&mut self) -> Result<(), NetfilterError> {
        self.apply_by(None)
    }

    fn apply_by(&mut self, nft: Option<Nft>) -> Result<(), NetfilterError> {
        self.is_applied = false;
        let port = started(nft)?.apply(&self.ruleset.replacement())?;
        self.settle(port);
        Ok(())
    }

    /// Starts an nft for a pod's rules, if they are to change the table.
    ///
    /// # Errors
    /// As [`Nft::start`].
    pub fn prepare(&self, pod: &PodRules) -> Result<Option<Nft>, NetfilterError> {
        self.ruleset.lacks(pod).then(Nft::start).transpose()
    }

    /// Adds a pod's rules, by an nft that waits for them if there is one.
    ///
    /// # Errors
    /// nft failed; then nothing has changed.
    pub fn add(&mut self, pod: &PodRules, nft: Option<Nft>) -> Result<(), NetfilterError> {
        let was_empty = self.ruleset.is_empty();
        let change = self.ruleset.add(pod);
        self.carry_out(&change, was_empty, nft).inspect_err(|_| {
            self.ruleset.remove(pod);
        })
    }

    /// Removes a pod's rules.
    ///
    /// # Errors
    /// nft failed; the rules are forgotten and go with the next change.
    pub fn remove(&mut self, pod: &PodRules) -> Result<(), NetfilterError> {
        let change = self.ruleset.remove(pod);
        self.carry_out(&change, self.ruleset.is_empty(), None)
    }

    /// Asks the kernel whether it has a pod's mappings: whether it could
    /// delete each of them, and has none with another meaning.
    ///
    /// # Errors
    /// It has not, or nft failed.
    pub fn check(&self, pod: &PodRules) -> Result<(), NetfilterError> {
        nft::try_out(&pod.removal())?;
        nft::try_out(&pod.addition())
    }

    /// Puts the table back if somebody else touched it. To be called when
    /// [`Netfilter::as_fd`] is readable, and now and then: what failed is tried
    /// again. Answers whether it was put back.
    ///
    /// # Errors
    /// nft failed.
    pub fn mend(&mut self) -> Result<bool, NetfilterError> {
        self.is_applied &= !self.watch.was_touched(None);
        if self.is_applied {
            return Ok(false);
        }
        self.apply()?;
        Ok(true)
    }

    fn carry_out(
        &mut self,
        change: &str,
        as_whole: bool,
        nft: Option<Nft>,
    ) -> Result<(), NetfilterError> {
        if change.is_empty() {
            return Ok(());
        }
        if as_whole || !self.is_applied {
            return self.apply_by(nft);
        }
        match started(nft).and_then(|nft| nft.apply(change)) {
            Ok(port) => {
                self.settle(port);
                Ok(())
            }
            // Somebody has taken away what it relies on.
            Err(NetfilterError::Refused { .. }) => self.apply(),
            Err(error) => {
                self.is_applied = false;
                Err(error)
            }
        }
    }

    /// After a change of ours: whether somebody else made one, too.
    fn settle(&mut self, port: Port) {
        self.is_applied = !self.watch.was_touched(Some(port));
    }
}

impl AsFd for Netfilter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

fn started(nft: Option<Nft>) -> Result<Nft, NetfilterError> {
    nft.map_or_else(Nft::start, Ok)
}

/// Asks nft and the kernel whether they could make the table; changes nothing.
///
/// # Errors
/// They could not.
pub fn try_out() -> Result<(), NetfilterError> {
    nft::try_out(&Ruleset::new(true).trial())
}

/// Removes the table; a success also if there is none.
///
/// # Errors
/// nft failed.
pub fn remove() -> Result<(), NetfilterError> {
    nft::apply(&Ruleset::new(true).replacement()).map(drop)
}
