//! VERSION: which versions of the specification this plugin supports.

use serde_json::{Value, json};

use crate::config::{LATEST_VERSION, SUPPORTED_VERSIONS};
use crate::error::Error;

/// The answer repeats the version it was asked in, also one it does not
/// support: that is how a runtime finds out.
pub(crate) fn version(stdin: &[u8]) -> Result<Value, Error> {
    let asked: Value = if stdin.trim_ascii().is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(stdin)
            .map_err(|error| Error::decode(format!("decode the object on stdin: {error}")))?
    };
    Ok(json!({
        "cniVersion": asked["cniVersion"].as_str().unwrap_or(LATEST_VERSION),
        "supportedVersions": SUPPORTED_VERSIONS,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_asked_version_is_repeated() {
        for (stdin, repeated) in [
            ("", "1.1.0"),
            ("{}", "1.1.0"),
            (r#"{"cniVersion": "0.4.0"}"#, "0.4.0"),
            (r#"{"cniVersion": "2.0.0"}"#, "2.0.0"),
        ] {
            let answer = version(stdin.as_bytes()).unwrap();
            assert_eq!(answer["cniVersion"], repeated);
            assert_eq!(
                answer["supportedVersions"],
                serde_json::json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
            );
        }
        assert!(version(b"{").is_err());
    }
}
