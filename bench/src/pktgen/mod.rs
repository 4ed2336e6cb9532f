//! `sluice-bench pktgen`: a packet generator and a sink.
//!
//! - [`packet`], [`size`], [`stamp`], [`pace`]: what is sent, and when
//! - [`resolve`], [`send`]: the generator in a namespace
//! - [`arrival`], [`sequence`], [`latency`], [`sink`]: what came
//! - [`trial`]: both at once, [`report`] for people

mod arrival;
mod cli;
mod latency;
mod pace;
mod packet;
mod report;
mod resolve;
mod send;
mod sequence;
mod sink;
mod size;
mod stamp;
mod trial;

pub(crate) use cli::{Args, run};
pub(crate) use latency::Latency;
pub(crate) use packet::Protocol;
pub(crate) use report::scaled;
pub(crate) use send::{SendBy, SendSpec};
pub(crate) use sink::{SinkBy, SinkSpec};
pub(crate) use size::Sizes;
pub(crate) use trial::{Outcome, Place, Progress, Trial, netns_path};
