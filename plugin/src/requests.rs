//! What a runtime asks for one attachment, beside the network's configuration:
//! `runtimeConfig` (the capabilities) and `args.cni`
//! (<https://www.cni.dev/docs/conventions/>).
//!
//! Both go to the IPAM plugin as they are, which reads the addresses there.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sluice_control::PortMapping;

use crate::cni_args::CniArgs;
use crate::error::Error;
use crate::mac;
use crate::mappings::{self, Entry};
use crate::result::IpamResult;

/// What is asked.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// `runtimeConfig.mac` and `args.cni.mac`, as they came.
    macs: [(&'static str, Option<String>); 2],
    /// `runtimeConfig.ips`
    addresses: Vec<IpAddr>,
    /// `runtimeConfig.portMappings`; `None` if the runtime does not say.
    pub(crate) mappings: Option<Vec<PortMapping>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RuntimeConfig {
    mac: Option<String>,
    ips: Option<Vec<String>>,
    port_mappings: Option<Vec<Entry>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConfigArgs {
    cni: Option<ConventionalArgs>,
}

/// Nothing here depends on addresses and labels: only their types are checked.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConventionalArgs {
    mac: Option<String>,
    ips: Option<Vec<String>>,
    labels: Option<Vec<Label>>,
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only the types are checked")]
struct Label {
    key: String,
    value: String,
}

impl Requests {
    /// Reads them from our object in the network configuration.
    ///
    /// # Errors
    /// A value of the wrong type, or an address that is none, in words.
    pub(crate) fn read(object: &Map<String, Value>) -> Result<Self, String> {
        let runtime: RuntimeConfig = part(object, "runtimeConfig")?;
        let args: ConfigArgs = part(object, "args")?;
        let ips = runtime.ips.unwrap_or_default();
        let addresses = ips.iter().map(|text| {
            address(text).ok_or_else(|| {
                format!(
                    "runtimeConfig.ips has {text:?}: it must be an address, with a prefix length \
                     or without"
                )
            })
        });
        let mappings = runtime.port_mappings.as_deref().map(mappings::read);
        Ok(Self {
            mappings: mappings
                .transpose()
                .map_err(|error| format!("runtimeConfig.portMappings: {error}"))?,
            addresses: addresses.collect::<Result<_, _>>()?,
            macs: [
                ("runtimeConfig.mac", runtime.mac),
                ("args.cni.mac", args.cni.unwrap_or_default().mac),
            ],
        })
    }

    /// The MAC address that the pod's interface is to have, if one is asked
    /// for. The order is that of the reference plugins (`bridge`, `macvlan`):
    /// `runtimeConfig.mac`, then `args.cni.mac`, then `MAC` in `CNI_ARGS`.
    ///
    /// # Errors
    /// No pod can have it; the message names where it came from.
    pub(crate) fn mac(&self, args: &CniArgs) -> Result<Option<[u8; 6]>, Error> {
        let in_configuration = self.macs.iter();
        let mut given =
            in_configuration.filter_map(|(source, mac)| Some((source, mac.as_deref()?)));
        if let Some((source, text)) = given.find(|(_, text)| !text.is_empty()) {
            return mac::parse(text)
                .map(Some)
                .map_err(|rule| Error::configuration(format!("{source} is {text:?}: it {rule}")));
        }
        args.mac().map(mac::parse).transpose().map_err(|rule| {
            let text = args.mac().unwrap_or_default();
            Error::environment(format!("MAC in CNI_ARGS is {text:?}: it {rule}"))
        })
    }

    /// Refuses an answer without the addresses of `runtimeConfig.ips`: IPAM
    /// plugins that do not know the capability overlook it.
    pub(crate) fn check_addresses(&self, ipam: &IpamResult) -> Result<(), Error> {
        let given: Vec<IpAddr> = ipam.ips.iter().map(|ip| ip.address.addr()).collect();
        match self.addresses.iter().find(|asked| !given.contains(asked)) {
            None => Ok(()),
            Some(lacking) => Err(Error::ipam(format!(
                "runtimeConfig.ips asks for {lacking}, which the IPAM plugin did not give: use one \
                 that has the capability ips, such as host-local"
            ))),
        }
    }
}

/// One of the objects; empty if it is not there.
pub(crate) fn part<T: DeserializeOwned + Default>(
    object: &Map<String, Value>,
    key: &str,
) -> Result<T, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(T::default()),
        Some(value @ Value::Object(_)) => {
            T::deserialize(value).map_err(|error| format!("{key}: {error}"))
        }
        Some(other) => Err(format!("{key} is {other}: it must be an object")),
    }
}

fn address(text: &str) -> Option<IpAddr> {
    let net = text.parse().map(|net: IpNet| net.addr());
    net.ok().or_else(|| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn requests(object: Value) -> Result<Requests, String> {
        Requests::read(object.as_object().unwrap())
    }

    fn mac(object: Value, args: &str) -> Result<Option<[u8; 6]>, Error> {
        let args = CniArgs::parse(args).unwrap();
        requests(object).unwrap().mac(&args)
    }

    #[test]
    fn the_capability_goes_before_args_and_the_variable() {
        let runtime = json!({"mac": "02:00:00:00:00:01"});
        let args = json!({"cni": {"mac": "02:00:00:00:00:02"}});
        let variable = "MAC=02:00:00:00:00:03";
        for (object, variable, last) in [
            (json!({"runtimeConfig": runtime, "args": args}), variable, 1),
            (
                json!({"runtimeConfig": {"mac": ""}, "args": args}),
                variable,
                2,
            ),
            (json!({"args": args}), variable, 2),
            (json!({"runtimeConfig": null, "args": null}), variable, 3),
            (json!({"args": {"cni": null}}), "A=1", 0),
        ] {
            let expected = (last > 0).then_some([2, 0, 0, 0, 0, last]);
            assert_eq!(mac(object.clone(), variable), Ok(expected), "{object}");
        }
    }

    #[test]
    fn a_bad_mac_names_its_source() {
        for (object, args, code, source) in [
            (
                json!({"runtimeConfig": {"mac": "x"}}),
                "",
                7,
                "runtimeConfig.mac is \"x\"",
            ),
            (
                json!({"args": {"cni": {"mac": "x"}}}),
                "",
                7,
                "args.cni.mac is \"x\"",
            ),
            (
                json!({}),
                "MAC=01:00:00:00:00:01",
                4,
                "MAC in CNI_ARGS is \"01:",
            ),
        ] {
            let error = mac(object, args).unwrap_err();
            assert_eq!(error.to_json(b"")["code"], code);
            assert!(error.to_string().starts_with(source), "{error}");
        }
    }

    #[test]
    fn others_keys_are_theirs_and_wrong_types_are_named() {
        let object = json!({
            "runtimeConfig": {"portMappings": [], "ips": ["10.77.0.9/24", "fd77::9"]},
            "args": {
                "cni": {"labels": [{"key": "app", "value": "web"}], "ips": ["10.77.0.9"], "new": 1},
                "example.com": 7,
            },
        });
        assert_eq!(requests(object).unwrap().addresses.len(), 2);
        for (object, needle) in [
            (
                json!({"runtimeConfig": 7}),
                "runtimeConfig is 7: it must be an object",
            ),
            (
                json!({"runtimeConfig": {"mac": 7}}),
                "runtimeConfig: invalid type",
            ),
            (
                json!({"runtimeConfig": {"ips": "10.77.0.9"}}),
                "runtimeConfig: invalid type",
            ),
            (
                json!({"runtimeConfig": {"ips": ["10.77.0"]}}),
                "runtimeConfig.ips has \"10.77.0\"",
            ),
            (json!({"args": []}), "args is []"),
            (
                json!({"args": {"cni": {"labels": {"app": "web"}}}}),
                "args: invalid type",
            ),
            (
                json!({"args": {"cni": {"labels": [{"key": "app"}]}}}),
                "args: missing field",
            ),
            (json!({"args": {"cni": {"ips": [7]}}}), "args: invalid type"),
        ] {
            let error = requests(object).unwrap_err();
            assert!(error.starts_with(needle), "{error}");
        }
    }

    #[test]
    fn an_address_that_ipam_overlooked_is_noticed() {
        let ipam = json!({"ips": [{"address": "10.77.0.9/24"}, {"address": "fd77::9/64"}]});
        let ipam = serde_json::from_value(ipam).unwrap();
        for (ips, lacks) in [
            (json!([]), false),
            (json!(["fd77::9", "10.77.0.9/24"]), false),
            (json!(["10.77.0.9", "10.77.0.8"]), true),
        ] {
            let requests = requests(json!({"runtimeConfig": {"ips": ips}})).unwrap();
            assert_eq!(requests.check_addresses(&ipam).is_err(), lacks, "{ips}");
        }
    }
}
