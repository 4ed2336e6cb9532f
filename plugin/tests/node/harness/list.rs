//! What a container runtime does with a network configuration list, from the
//! specification's section 3, "Execution of Network Configurations".

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::Space;
use super::runtime::{Answer, Call, Runtime};

/// A container's interface, there or to be made.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    id: String,
    netns: PathBuf,
    ifname: String,
    /// What the runtime has to say, by capability.
    arguments: Map<String, Value>,
}

impl Container {
    pub(crate) fn new(space: &Space, id: &str, ifname: &str) -> Self {
        Self {
            id: id.to_owned(),
            netns: space.path(),
            ifname: ifname.to_owned(),
            arguments: Map::new(),
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The same with something to say to plugins that have a capability.
    #[must_use]
    pub(crate) fn with(mut self, capability: &str, argument: Value) -> Self {
        self.arguments.insert(capability.to_owned(), argument);
        self
    }
}

/// A network configuration list, as it lies in `/etc/cni/net.d`, and the
/// runtime that carries it out.
#[derive(Debug, Clone)]
pub(crate) struct List {
    pub(crate) configuration: Value,
    runtime: Runtime,
}

/// One operation on a list.
struct Operation<'a> {
    verb: &'a str,
    /// None for operations on the network as a whole.
    container: Option<&'a Container>,
    /// A key that only this operation has.
    extra: Option<(&'a str, Value)>,
}

impl List {
    pub(crate) fn new(configuration: Value, runtime: Runtime) -> Self {
        Self {
            configuration,
            runtime,
        }
    }

    /// The same with one key of the list set.
    #[must_use]
    pub(crate) fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.configuration[key] = value.into();
        self
    }

    /// The plugins that do not name the list's version among theirs.
    pub(crate) fn without_its_version(&self) -> Vec<&str> {
        let version = &self.configuration["cniVersion"];
        let operation = Operation {
            verb: "VERSION",
            container: None,
            extra: None,
        };
        let mut plugins: Vec<_> = self.plugins().iter().collect();
        plugins.retain(|plugin| {
            let answer = self.run(&operation, plugin).ok();
            let versions = answer["supportedVersions"].as_array().unwrap();
            !versions.contains(version)
        });
        let types = plugins.into_iter().map(|plugin| plugin["type"].as_str());
        types.map(Option::unwrap).collect()
    }

    /// Each plugin in turn, with the result of the one before it. The answer is
    /// the first failure, which ends it, or the last result.
    pub(crate) fn add(&self, container: &Container) -> Answer {
        let mut last = None;
        for plugin in self.plugins() {
            let operation = Operation {
                verb: "ADD",
                container: Some(container),
                extra: last.map(|answer: Answer| ("prevResult", answer.ok())),
            };
            let answer = self.run(&operation, plugin);
            if !answer.success {
                return answer;
            }
            last = Some(answer);
        }
        last.expect("a list of at least one plugin")
    }

    /// Each plugin in turn, with the result of ADD, up to the first failure.
    /// Nothing where the list says so.
    pub(crate) fn check(&self, container: &Container, result: &Value) -> Vec<Answer> {
        if self.configuration["disableCheck"] == true {
            return vec![];
        }
        let operation = Operation {
            verb: "CHECK",
            container: Some(container),
            extra: Some(("prevResult", result.clone())),
        };
        self.up_to_failure(&operation, self.plugins().iter())
    }

    /// Each plugin in reverse order, with the result of ADD if there was one,
    /// up to the first failure.
    pub(crate) fn del(&self, container: &Container, result: Option<&Value>) -> Vec<Answer> {
        let operation = Operation {
            verb: "DEL",
            container: Some(container),
            extra: result.map(|result| ("prevResult", result.clone())),
        };
        self.up_to_failure(&operation, self.plugins().iter().rev())
    }

    /// Each plugin in turn, up to the first that is not ready.
    pub(crate) fn status(&self) -> Vec<Answer> {
        let operation = Operation {
            verb: "STATUS",
            container: None,
            extra: None,
        };
        self.up_to_failure(&operation, self.plugins().iter())
    }

    /// Each plugin, whatever the others answer, with the containers that are
    /// still there.
    pub(crate) fn gc(&self, valid: &[&Container]) -> Vec<Answer> {
        let valid = valid.iter();
        let valid = valid.map(|valid| json!({"containerID": valid.id, "ifname": valid.ifname}));
        let operation = Operation {
            verb: "GC",
            container: None,
            extra: Some(("cni.dev/valid-attachments", valid.collect())),
        };
        let plugins = self.plugins().iter();
        plugins.map(|plugin| self.run(&operation, plugin)).collect()
    }

    fn plugins(&self) -> &[Value] {
        self.configuration["plugins"].as_array().unwrap()
    }

    fn up_to_failure<'a>(
        &self,
        operation: &Operation<'_>,
        plugins: impl Iterator<Item = &'a Value>,
    ) -> Vec<Answer> {
        let mut answers: Vec<Answer> = Vec::new();
        for plugin in plugins {
            answers.push(self.run(operation, plugin));
            if answers.last().is_some_and(|answer| !answer.success) {
                break;
            }
        }
        answers
    }

    fn run(&self, operation: &Operation<'_>, plugin: &Value) -> Answer {
        let request = self.request(operation, plugin);
        let call = match operation.container {
            Some(container) => Call {
                verb: operation.verb,
                id: &container.id,
                netns: &container.netns,
                ifname: &container.ifname,
            },
            None => Call::of_no_container(operation.verb),
        };
        self.runtime.call(&call, &request)
    }

    /// "Deriving request configuration from plugin configuration": the list's
    /// version and name, and of the runtime's arguments those that the plugin
    /// has capabilities for.
    fn request(&self, operation: &Operation<'_>, plugin: &Value) -> Value {
        let mut request = plugin.clone();
        let object = request.as_object_mut().unwrap();
        for key in ["cniVersion", "name"] {
            object.insert(key.to_owned(), self.configuration[key].clone());
        }
        let capabilities = object.remove("capabilities");
        if let (Some(capabilities), Some(container)) = (capabilities, operation.container) {
            let mut arguments = container.arguments.clone();
            arguments.retain(|capability, _| capabilities[capability] == true);
            if !arguments.is_empty() {
                object.insert("runtimeConfig".to_owned(), arguments.into());
            }
        }
        if let Some((key, value)) = &operation.extra {
            object.insert((*key).to_owned(), value.clone());
        }
        request
    }
}

/// Asserts that all of them succeeded.
#[track_caller]
pub(crate) fn all_ok(answers: Vec<Answer>) {
    for answer in answers {
        answer.ok();
    }
}
