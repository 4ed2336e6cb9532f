//! From a request's bytes to its answer: versions and features first, so that
//! a client of another version gets a reason and not a parser's complaint.

use serde::Deserialize;
use sluice_control::{
    AttachmentId, Envelope, ErrorCode, PORT_MAPPINGS, PROTOCOL, ProtocolRange, Refusal, Request,
    Response, SHAPING,
};

/// What a client may name in `requires`. A daemon that lacks a feature would
/// serve the pod without it, so it refuses what is not in this list.
const FEATURES: &[&str] = &[PORT_MAPPINGS, SHAPING];

/// The part of a request that every version has.
#[derive(Deserialize)]
struct Preamble {
    protocol: ProtocolRange,
    #[serde(default)]
    requires: Vec<String>,
    op: String,
}

/// The one request that is served whatever the version: a pod must always be
/// removable.
#[derive(Deserialize)]
struct AnyDetach {
    id: AttachmentId,
}

/// Answers one request.
pub(super) fn serve(bytes: &[u8], answer: &mut impl FnMut(Request) -> Response) -> Response {
    match parse(bytes) {
        Ok(request) => answer(request),
        Err(refusal) => Response::Error(refusal),
    }
}

fn parse(bytes: &[u8]) -> Result<Request, Refusal> {
    let preamble: Preamble = serde_json::from_slice(bytes).map_err(unreadable)?;
    if preamble.op == "detach" {
        let AnyDetach { id } = serde_json::from_slice(bytes).map_err(unreadable)?;
        return Ok(Request::Detach { id });
    }
    let ProtocolRange { min, max } = preamble.protocol;
    if !preamble.protocol.contains(PROTOCOL) {
        return Err(Refusal::new(
            ErrorCode::Unsupported,
            format!(
                "{}: the client speaks protocol versions {min} to {max}, this daemon speaks {PROTOCOL}; \
                 install plugin and daemon of one release",
                preamble.op
            ),
        ));
    }
    if let Some(feature) = preamble
        .requires
        .iter()
        .find(|feature| !FEATURES.contains(&feature.as_str()))
    {
        return Err(Refusal::new(
            ErrorCode::Unsupported,
            format!(
                "{}: the client requires {feature:?}, which this daemon does not have; update the daemon",
                preamble.op
            ),
        ));
    }
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(unreadable)?;
    Ok(envelope.request)
}

fn unreadable(error: serde_json::Error) -> Refusal {
    Refusal::new(ErrorCode::Invalid, format!("read a request: {error}"))
}
