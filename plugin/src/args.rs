//! The `CNI_*` environment variables, checked.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use sluice_control::{check_ifname, check_name};

use crate::cni_args::CniArgs;
use crate::error::Error;

/// What a runtime says about the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Args {
    /// `CNI_CONTAINERID`
    pub(crate) container_id: String,
    /// `CNI_IFNAME`: the interface's name inside the container.
    pub(crate) ifname: String,
    /// `CNI_NETNS`: the container's namespace; always there for ADD.
    pub(crate) netns: Option<PathBuf>,
    /// `CNI_PATH`: where other plugins are.
    pub(crate) path: Vec<PathBuf>,
    /// `CNI_ARGS`
    pub(crate) cni_args: CniArgs,
}

impl Args {
    /// What ADD needs (specification, section 4, "ADD").
    pub(crate) fn for_add() -> Result<Self, Error> {
        let required = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"];
        Self::read(&required, CniArgs::parse, |name| env::var_os(name))
    }

    /// What CHECK needs: the same.
    pub(crate) fn for_check() -> Result<Self, Error> {
        Self::for_add()
    }

    /// What DEL needs: the namespace may be gone.
    pub(crate) fn for_del() -> Result<Self, Error> {
        let required = ["CNI_CONTAINERID", "CNI_IFNAME"];
        let cni_args = |text: &str| Ok(CniArgs::parse_what_can_be(text));
        Self::read(&required, cni_args, |name| env::var_os(name))
    }

    fn read(
        required: &[&str],
        cni_args: impl FnOnce(&str) -> Result<CniArgs, Error>,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Error> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let missing: Vec<&str> = required
            .iter()
            .copied()
            .filter(|name| env(name).is_none())
            .collect();
        if !missing.is_empty() {
            return Err(Error::environment(format!(
                "{} not set: the container runtime must set them for this operation",
                missing.join(", ")
            )));
        }
        let checked = |name: &str, rule: fn(&str) -> Result<(), &'static str>| {
            let value = env(name).unwrap_or_default();
            let value = value.to_string_lossy();
            match rule(&value) {
                Ok(()) => Ok(value.into_owned()),
                Err(rule) => Err(Error::environment(format!("{name} is {value:?}: {rule}"))),
            }
        };
        Ok(Self {
            container_id: checked("CNI_CONTAINERID", check_name)?,
            ifname: checked("CNI_IFNAME", check_ifname)?,
            netns: env("CNI_NETNS").map(PathBuf::from),
            path: split(env("CNI_PATH")),
            cni_args: cni_args(&env("CNI_ARGS").unwrap_or_default().to_string_lossy())?,
        })
    }
}

/// `CNI_PATH` alone, all that GC and STATUS have: they are about no container.
pub(crate) fn path() -> Vec<PathBuf> {
    split(env::var_os("CNI_PATH").filter(|path| !path.is_empty()))
}

fn split(path: Option<OsString>) -> Vec<PathBuf> {
    path.map(|path| env::split_paths(&path).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(required: &[&str], env: &[(&str, &str)]) -> Result<Args, Error> {
        Args::read(required, CniArgs::parse, |name| {
            let found = env.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn all_missing_variables_are_named_at_once() {
        let error = read(
            &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            &[("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "")],
        );
        let text = error.unwrap_err().to_string();
        assert!(text.starts_with("CNI_NETNS, CNI_IFNAME not set"), "{text}");
    }

    #[test]
    fn names_that_could_leave_a_directory_are_refused() {
        for (name, value) in [
            ("CNI_CONTAINERID", "../../etc"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "eth0/.."),
            ("CNI_IFNAME", "sixteen-letters-"),
        ] {
            let good = [("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")];
            let mut env = vec![(name, value)];
            env.extend(good);
            let text = read(&[], &env).unwrap_err().to_string();
            assert!(text.contains(name) && text.contains(value), "{text}");
        }
    }

    #[test]
    fn the_path_is_a_list() {
        let env = [
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
        ];
        let args = read(&[], &env).unwrap();
        assert_eq!(
            args.path,
            ["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from)
        );
        assert_eq!(args.netns, None);
    }
}
