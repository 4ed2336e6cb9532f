//! The daemon's settings, from the CNI configuration that the plugin reads too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sluice_control::{DataplaneSettings, InvalidSettings};

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

/// The settings that these arguments name, checked.
pub(crate) fn settings(arguments: &SettingsArgs) -> Result<DataplaneSettings, ConflistError> {
    let mut settings = match &arguments.conflist {
        None => DataplaneSettings::default(),
        Some(path) => read(path)?,
    };
    if let Some(run_dir) = &arguments.run_dir {
        settings.run_dir.clone_from(run_dir);
    }
    settings.validate()?;
    Ok(settings)
}

fn read(path: &Path) -> Result<DataplaneSettings, ConflistError> {
    let text = fs::read(path).map_err(|cause| ConflistError::Read {
        path: path.to_owned(),
        cause,
    })?;
    let configuration = serde_json::from_slice(&text).map_err(|cause| ConflistError::Json {
        path: path.to_owned(),
        cause,
    })?;
    let plugin = find_plugin(&configuration).ok_or_else(|| ConflistError::NoSluice {
        path: path.to_owned(),
    })?;
    match plugin.get("dataplane") {
        None => Ok(DataplaneSettings::default()),
        Some(dataplane) => {
            serde_json::from_value(dataplane.clone()).map_err(ConflistError::Settings)
        }
    }
}

/// A conflist has a list of plugins, a conf is one plugin's object.
fn find_plugin(configuration: &Value) -> Option<&Value> {
    let is_ours = |plugin: &&Value| plugin["type"] == TYPE;
    match configuration.get("plugins") {
        Some(plugins) => plugins.as_array()?.iter().find(is_ours),
        None => Some(configuration).filter(is_ours),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings_of(json: &str) -> Result<DataplaneSettings, ConflistError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), json).unwrap();
        settings(&SettingsArgs {
            conflist: Some(file.path().to_owned()),
            run_dir: None,
        })
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
    fn the_run_dir_of_the_command_line_wins() {
        let settings = settings(&SettingsArgs {
            conflist: None,
            run_dir: Some("/run/other".into()),
        });
        assert_eq!(settings.unwrap().run_dir, Path::new("/run/other"));
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
