//! What a plan is made by: the class and the tenant of a task as the configuration has them, and who put it there.

use serde::Serialize;

use crate::config::{Class, Config, Origins, TenantPolicy};
use crate::execute::native::sandbox::User;
use crate::intake::Task;
use crate::task::secret::SecretGrant;
use crate::task::{ClassName, ImagePattern, MountRoot, Tenant};

/// Who decided a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The assignment.
    Assignment,
    /// The configuration of its tenant.
    Tenant,
    /// The configuration of its class.
    Class,
    /// Nobody: neither the assignment nor the configuration names it.
    Default,
}

impl Source {
    /// The word in tables and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Assignment => "assignment",
            Self::Tenant => "tenant",
            Self::Class => "class",
            Self::Default => "default",
        }
    }
}

/// A value, and who decided it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Decided<T> {
    /// The value.
    pub value: T,
    /// Who decided it.
    pub from: Source,
}

impl<T> Decided<T> {
    /// In another form.
    pub(super) fn map<U>(self, form: impl FnOnce(T) -> U) -> Decided<U> {
        Decided { value: form(self.value), from: self.from }
    }
}

/// What a task's class and tenant give and allow.
#[derive(Debug)]
pub struct Policy<'a> {
    /// The class.
    pub class: &'a Class,
    name: Option<&'a ClassName>,
    tenant: Option<&'a TenantPolicy>,
    /// Images of tenants without a list of their own.
    images: &'a [ImagePattern],
    /// First of the user ids that tenants get.
    uid_base: u32,
    origins: Option<&'a Origins>,
    /// Whether the limits will be the kernel's to hold.
    pub enforced: bool,
}

impl<'a> Policy<'a> {
    /// Of the task's class and tenant; none when this configuration does not serve the class.
    #[must_use]
    pub fn of(config: &'a Config, task: &Task, enforced: bool) -> Option<Self> {
        let (name, class) = config.classes.get_key_value(&task.class)?;
        Some(Self {
            class,
            name: Some(name),
            tenant: config.tenants.get(&task.tenant),
            images: &config.docker.images,
            uid_base: config.sandbox.uid_base,
            origins: Some(&config.origins),
            enforced,
        })
    }

    /// A value that the assignment may name, and else the class does. `key` is the class's.
    pub(super) fn asked_or<T>(&self, asked: Option<T>, key: &str, default: impl FnOnce(&Class) -> T) -> Decided<T> {
        match asked {
            Some(value) => Decided { value, from: Source::Assignment },
            None => self.by_class(key, default),
        }
    }

    /// A value that is the class's alone.
    pub(super) fn by_class<T>(&self, key: &str, value: impl FnOnce(&Class) -> T) -> Decided<T> {
        let set = self.name.zip(self.origins).is_some_and(|(name, origins)| origins.sets(&format!("classes.{name}.{key}")));
        Decided { value: value(self.class), from: if set { Source::Class } else { Source::Default } }
    }

    /// Secrets that the tenant's tasks may refer to.
    pub(super) fn grants(&self) -> &'a [SecretGrant] {
        self.tenant.map_or(&[], |tenant| &tenant.secrets)
    }

    /// Images that the tenant's containers may use.
    pub(super) fn images(&self) -> &'a [ImagePattern] {
        self.tenant.and_then(|tenant| tenant.images.as_deref()).unwrap_or(self.images)
    }

    /// Roots below which the tenant's containers may mount.
    pub(super) fn mount_roots(&self) -> &'a [MountRoot] {
        self.tenant.map_or(&[], |tenant| &tenant.mounts)
    }

    /// The user that the tenant's tasks are.
    pub(super) fn user(&self, tenant: &Tenant) -> Decided<User> {
        let pinned = self.tenant.is_some_and(|tenant| tenant.uid.is_some() || tenant.gid.is_some());
        let from = if pinned { Source::Tenant } else { Source::Default };
        Decided { value: User::of_tenant(tenant, self.tenant, self.uid_base), from }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl<'a> Policy<'a> {
    /// Of a class alone.
    pub(crate) fn of_class(class: &'a Class) -> Self {
        Self { class, name: None, tenant: None, images: &[], uid_base: 1, origins: None, enforced: true }
    }

    /// With a tenant.
    pub(crate) fn with_tenant(self, tenant: &'a TenantPolicy) -> Self {
        Self { tenant: Some(tenant), ..self }
    }
}
