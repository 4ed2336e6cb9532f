//! The real plugin and the real daemon in real namespaces; see README.md.

mod harness;

mod chain;
mod checksums;
mod comparison;
mod control;
mod cut_off;
mod endurance;
mod failure;
mod gro;
mod hostport_cost;
mod hostport_flood;
mod hostports;
mod journal;
mod limits;
mod malformed;
mod many;
mod mappings;
mod mtu;
mod next_hops;
mod reach;
mod replacement;
mod requests;
mod restart;
mod sctp;
mod segments;
mod services;
mod settings;
mod shaping;
mod spoofing;
mod uplink;
mod userspace;
mod verbs;
