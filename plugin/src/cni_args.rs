//! `CNI_ARGS`: `KEY=VALUE` pairs beyond the specification's variables.
//!
//! The keys are conventions: `K8S_POD_*` is the kubelet's and podman's, `MAC`
//! podman's, `IP` is for IPAM. Those that nobody here knows are ignored.

use sluice_control::{PodName, check_label};

use crate::error::Error;

/// Says to the reference plugins that unknown keys are no error.
const IGNORE_UNKNOWN: &str = "IgnoreUnknown";

/// The pairs, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct CniArgs {
    pairs: Vec<(String, String)>,
}

impl CniArgs {
    /// Reads all pairs.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let bad = |part: &str| {
            Error::environment(format!(
                "CNI_ARGS has {part:?}: it must be KEY=VALUE pairs with ';' between them"
            ))
        };
        let pairs = parts(text).map(|part| pair(part).ok_or_else(|| bad(part)));
        Ok(Self {
            pairs: pairs.collect::<Result<_, _>>()?,
        })
    }

    /// Reads the pairs that can be read: a DEL must succeed.
    pub(crate) fn parse_what_can_be(text: &str) -> Self {
        Self {
            pairs: parts(text).filter_map(pair).collect(),
        }
    }

    /// `MAC`, as it came.
    pub(crate) fn mac(&self) -> Option<&str> {
        self.get("MAC")
    }

    /// What the pod is called, if both its namespace and its name are there.
    pub(crate) fn pod(&self) -> Result<Option<PodName>, Error> {
        let label = |key: &str| match self.get(key) {
            None => Ok(None),
            Some(value) => match check_label(value) {
                Ok(()) => Ok(Some(value.to_owned())),
                Err(rule) => Err(Error::environment(format!(
                    "{key} in CNI_ARGS is {value:?}: it {rule}"
                ))),
            },
        };
        let (namespace, name) = (label("K8S_POD_NAMESPACE")?, label("K8S_POD_NAME")?);
        let uid = label("K8S_POD_UID")?;
        Ok(namespace.zip(name).map(|(namespace, name)| PodName {
            namespace,
            name,
            uid,
        }))
    }

    /// The pairs for the IPAM plugin. Not all of them are for it, and
    /// host-local refuses what it does not know unless it is told not to.
    pub(crate) fn for_ipam(&self) -> String {
        let ours = [format!("{IGNORE_UNKNOWN}=1")];
        let theirs = self.pairs.iter().filter(|(key, _)| key != IGNORE_UNKNOWN);
        let theirs = theirs.map(|(key, value)| format!("{key}={value}"));
        ours.into_iter().chain(theirs).collect::<Vec<_>>().join(";")
    }

    /// A key's value; the last, where it comes twice, and none if it is empty.
    fn get(&self, key: &str) -> Option<&str> {
        let mut pairs = self.pairs.iter().rev();
        let (_, value) = pairs.find(|(known, _)| known == key)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(';').filter(move |_| !text.is_empty())
}

fn pair(part: &str) -> Option<(String, String)> {
    let (key, value) = part.split_once('=')?;
    let is_plain = !key.is_empty() && !value.contains('=');
    is_plain.then(|| (key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBELETS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;\
                            K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=0f5e-11";

    #[test]
    fn the_kubelets_pairs_name_the_pod() {
        let args = CniArgs::parse(KUBELETS).unwrap();
        let pod = args.pod().unwrap().unwrap();
        assert_eq!(pod.to_string(), "default/web-0");
        assert_eq!(pod.uid.as_deref(), Some("0f5e-11"));
        assert_eq!(args.mac(), None);
        assert_eq!(args.for_ipam(), KUBELETS);
    }

    #[test]
    fn half_a_name_is_none() {
        for text in [
            "",
            "K8S_POD_NAME=a",
            "K8S_POD_NAMESPACE=a",
            "K8S_POD_NAMESPACE=;K8S_POD_NAME=a",
        ] {
            assert_eq!(CniArgs::parse(text).unwrap().pod(), Ok(None), "{text}");
        }
    }

    #[test]
    fn a_name_that_could_deceive_is_refused() {
        for (key, value) in [
            ("K8S_POD_NAME", "a\nb"),
            ("K8S_POD_NAMESPACE", "\x1b[2J"),
            ("K8S_POD_UID", "../x"),
        ] {
            let args = CniArgs::parse(&format!("{key}={value}")).unwrap();
            let error = args.pod().unwrap_err();
            assert_eq!(error.to_json(b"")["code"], 4);
            assert!(error.to_string().starts_with(key), "{error}");
        }
    }

    #[test]
    fn what_is_no_pair_is_an_error_or_left_out() {
        for text in ["MAC", "A=1;MAC", "A=1;", "=1", "A=1=2", ";"] {
            let error = CniArgs::parse(text).unwrap_err();
            assert_eq!(error.to_json(b"")["code"], 4, "{text}");
        }
        let some = CniArgs::parse_what_can_be("MAC;IP=10.77.0.9;=1;IgnoreUnknown=0;B=2");
        assert_eq!(some.for_ipam(), "IgnoreUnknown=1;IP=10.77.0.9;B=2");
    }

    #[test]
    fn the_last_of_two_values_counts() {
        let args = CniArgs::parse("MAC=a;MAC=b").unwrap();
        assert_eq!(args.mac(), Some("b"));
    }
}
