//! `sluiced` on a node.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sluice_control::Client;

use super::process::Process;
use super::site::Site;
use super::{Tools, TopologyError};

/// Starts the daemon on a node and waits until it answers. `plugin` is the
/// network configuration, as it lies in a conflist.
pub(super) fn start(site: &Site, tools: &Tools, plugin: &Value) -> Result<Process, TopologyError> {
    let folder = site.folder.path();
    let conflist = folder.join("sluice.conflist");
    let network = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin]});
    fs::write(&conflist, network.to_string())
        .map_err(|error| TopologyError::refused("write", conflist.display().to_string(), error))?;
    let words = [
        &tools.sluiced(),
        Path::new("run"),
        Path::new("--conflist"),
        &conflist,
    ];
    let words = words.map(|word| word.to_string_lossy().into_owned());
    let words = words.each_ref().map(String::as_str);
    let log = folder.join("sluiced.log");
    let mut daemon = Process::start("sluiced", &site.node, &words, &log)?;
    let client = client(site);
    daemon.wait_until(|| client.describe().is_ok())?;
    Ok(daemon)
}

/// How a site's daemon is asked.
pub(super) fn client(site: &Site) -> Client {
    Client::new(&site.folder.run_dir().join("sluiced.sock"))
}
