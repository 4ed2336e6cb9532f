//! The CNI configuration that the plugin reads too: the daemon's settings, and
//! what is chained behind the plugin.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sluice_control::{DataplaneSettings, InvalidSettings, NetworkBandwidth};

use crate::chained;
use crate::cli::SettingsArgs;

/// The plugin's name in a configuration.
const TYPE: &str = "sluice";

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConflistError {
    #[error("read the configuration {}: {cause}", path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error("read the configuration {}: {cause}", path.display())]
    Json {
        path: PathBuf,
        cause: serde_json::Error,
    },
    #[error(
        "read the configuration {}: no plugin in it has \"type\": \"sluice\"; \
         is it the right file?",
        path.display()
    )]
    NoSluice { path: PathBuf },
    #[error("the configuration's \"dataplane\" object: {0}")]
    Settings(serde_json::Error),
    #[error(transparent)]
    Invalid(#[from] InvalidSettings),
}

/// What the daemon needs of a configuration.
#[derive(Debug, Default)]
pub(crate) struct Conflist {
    pub(crate) settings: DataplaneSettings,
    /// The network's name.
    network: String,
    /// Our object.
    ours: Value,
    /// The plugins behind ours in the list, each as configured.
    chained: Vec<Value>,
}

impl Conflist {
    /// A line for everything that the plugins behind ours do less than they
    /// promise, or that does harm.
    pub(crate) fn notes(&self) -> Vec<&'static str> {
        chained::notes(&self.ours, &self.chained)
    }

    /// Whether a plugin of this name is behind ours.
    pub(crate) fn chains(&self, plugin: &str) -> bool {
        self.chained.iter().any(|chained| chained["type"] == plugin)
    }

    /// Limits of a plugin `bandwidth` behind ours, where they have no effect.
    ///
    /// # Errors
    /// A value that is no limit, in words.
    pub(crate) fn bandwidth(&self) -> Result<Option<NetworkBandwidth>, String> {
        chained::limits(&self.network, &self.chained)
    }
}

/// Reads the configuration that these arguments name, and checks the settings.
pub(crate) fn read(arguments: &SettingsArgs) -> Result<Conflist, ConflistError> {
    let mut conflist = match &arguments.conflist {
        None => Conflist::default(),
        Some(path) => read_file(path)?,
    };
    if let Some(run_dir) = &arguments.run_dir {
        conflist.settings.run_dir.clone_from(run_dir);
    }
    conflist.settings.validate()?;
    Ok(conflist)
}

fn read_file(path: &Path) -> Result<Conflist, ConflistError> {
    let text = fs::read(path).map_err(|cause| ConflistError::Read {
        path: path.to_owned(),
        cause,
    })?;
    let configuration: Value =
        serde_json::from_slice(&text).map_err(|cause| ConflistError::Json {
            path: path.to_owned(),
            cause,
        })?;
    let network = configuration["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let mut plugins = plugins(configuration).into_iter();
    let ours = plugins.find(|plugin| plugin["type"] == TYPE);
    let ours = ours.ok_or_else(|| ConflistError::NoSluice {
        path: path.to_owned(),
    })?;
    let settings = match ours.get("dataplane") {
        None => DataplaneSettings::default(),
        Some(dataplane) => {
            serde_json::from_value(dataplane.clone()).map_err(ConflistError::Settings)?
        }
    };
    Ok(Conflist {
        settings,
        network,
        ours,
        chained: plugins.collect(),
    })
}

/// A conflist has a list of plugins, a conf is one plugin's object.
fn plugins(mut configuration: Value) -> Vec<Value> {
    match configuration.get_mut("plugins").map(Value::take) {
        Some(Value::Array(plugins)) => plugins,
        Some(_) => vec![],
        None => vec![configuration],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflist_of(json: &str) -> Result<Conflist, ConflistError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), json).unwrap();
        read(&SettingsArgs {
            conflist: Some(file.path().to_owned()),
            run_dir: None,
        })
    }

    fn settings_of(json: &str) -> Result<DataplaneSettings, ConflistError> {
        conflist_of(json).map(|conflist| conflist.settings)
    }

    #[test]
    fn a_conflist_and_a_conf_give_their_settings() {
        for json in [
            r#"{"name": "pods", "plugins": [{"type": "tuning"},
                {"type": "sluice", "dataplane": {"maxPorts": 7}}]}"#,
            r#"{"name": "pods", "type": "sluice", "dataplane": {"maxPorts": 7}}"#,
        ] {
            assert_eq!(settings_of(json).unwrap().max_ports, 7);
        }
        let plain = r#"{"plugins": [{"type": "sluice"}]}"#;
        assert_eq!(settings_of(plain).unwrap(), DataplaneSettings::default());
    }

    #[test]
    fn plugins_behind_ours_are_chained_and_those_before_are_not() {
        let conflist = conflist_of(
            r#"{"plugins": [{"type": "before"}, {"type": "sluice"}, {"type": "behind"}]}"#,
        );
        let conflist = conflist.unwrap();
        assert_eq!(conflist.chained, [serde_json::json!({"type": "behind"})]);
        assert!(conflist.chains("behind") && !conflist.chains("before"));
    }

    #[test]
    fn limits_behind_ours_are_the_networks() {
        let conflist = conflist_of(
            r#"{"name": "pods", "plugins": [{"type": "bandwidth", "egressRate": 2000},
                {"type": "sluice"}, {"type": "bandwidth", "egressRate": 5000, "egressBurst": 8000}]}"#,
        )
        .unwrap();
        let found = conflist.bandwidth().unwrap().unwrap();
        assert_eq!(found.network, "pods");
        assert_eq!(found.bandwidth.egress.map(|limit| limit.rate), Some(5000));
        assert_eq!(conflist.notes().len(), 1);
        assert_eq!(Conflist::default().bandwidth(), Ok(None));
    }

    #[test]
    fn the_run_dir_of_the_command_line_wins() {
        let conflist = read(&SettingsArgs {
            conflist: None,
            run_dir: Some("/run/other".into()),
        });
        assert_eq!(conflist.unwrap().settings.run_dir, Path::new("/run/other"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (json, name) in [
            ("{", "EOF"),
            (r#"{"plugins": [{"type": "bridge"}]}"#, "type"),
            (r#"{"plugins": {}}"#, "type"),
            (
                r#"{"type": "sluice", "dataplane": {"maxport": 7}}"#,
                "maxport",
            ),
            (
                r#"{"type": "sluice", "dataplane": {"maxPorts": 0}}"#,
                "maxPorts",
            ),
        ] {
            let error = settings_of(json).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
