//! Limits: those of a whole network, and those that an operator changes while
//! the pod runs.

use sluice_control::{AttachmentId, ErrorCode, LimitChange, NetworkBandwidth, Refusal, Shaping};

use super::Node;

impl Node {
    /// Has the plugin give these limits to the pods of their network that are
    /// attached from now on, unless its own object has limits.
    pub fn limit_network(&mut self, bandwidth: NetworkBandwidth) {
        self.bandwidth = Some(bandwidth);
    }

    /// Changes the limits of a pod where a change is given, and returns what
    /// they are then.
    pub(super) fn set_shaping(
        &mut self,
        id: &AttachmentId,
        ingress: Option<LimitChange>,
        egress: Option<LimitChange>,
    ) -> Result<Shaping, Refusal> {
        let about = |code, message: &str| {
            let id = id.to_string();
            let message = format!("set the limits of {}: {message}", id.escape_default());
            Refusal::new(code, message)
        };
        let entry = self.book.get_mut(id);
        let entry =
            entry.ok_or_else(|| about(ErrorCode::Invalid, "this daemon does not serve it"))?;
        let changed = entry
            .attachment
            .reshape(ingress, egress)
            .map_err(|error| about(ErrorCode::Invalid, &error.to_string()))?;
        self.journal
            .write(&changed)
            .map_err(|error| about(ErrorCode::Failed, &error.to_string()))?;
        // A worker that is gone takes the daemon with it: the next one has it
        // from the journal.
        self.wiring
            .set_shaping(entry.wired.id, &changed)
            .map_err(|error| about(ErrorCode::Failed, &error.to_string()))?;
        let shaping = changed.shaping.clone();
        tracing::info!(
            id = %changed,
            limits = %changed.limits_in_words(),
            was = %entry.attachment.limits_in_words(),
            "set"
        );
        entry.attachment = changed;
        Ok(shaping)
    }
}
