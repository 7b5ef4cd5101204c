//! Who a container runs as, and whose the directory is that it is given. Pure.

use crate::execute::native::sandbox::User;
use crate::plan::ContainerUser;

/// A container's user, and what follows from it for the attempt's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// For the engine; none for the image's own.
    pub user: Option<String>,
    /// Whose the attempt's directory is, where that is not the worker itself.
    pub owner: Option<User>,
    /// A further group of the container, to which that directory is open: its user is not known here, or is not the owner.
    pub group: Option<u32>,
}

impl Identity {
    /// Of a container that asks for `asked`, of a tenant with the user `tenant`. `worker` is who the worker runs as, and
    /// `gives_away` that it may give files to others.
    #[must_use]
    pub fn of(asked: &ContainerUser, tenant: User, worker: User, gives_away: bool) -> Self {
        let shared = Some(if gives_away { tenant.gid } else { worker.gid });
        let name = |user: User| Some(format!("{}:{}", user.uid, user.gid));
        match asked {
            ContainerUser::Tenant if gives_away => Self { user: name(tenant), owner: Some(tenant), group: None },
            // A worker that is nobody special has its own files only, and so have its containers.
            ContainerUser::Tenant => Self { user: name(worker), owner: None, group: None },
            ContainerUser::Image => Self { user: None, owner: None, group: shared },
            ContainerUser::Id(id) => match parsed(id, tenant.gid) {
                Some(user) if gives_away => Self { user: name(user), owner: Some(user), group: None },
                Some(_) | None => Self { user: Some(id.clone()), owner: None, group: shared },
            },
        }
    }
}

fn parsed(id: &str, group: u32) -> Option<User> {
    let (uid, gid) = id.split_once(':').map_or((id, None), |(uid, gid)| (uid, Some(gid)));
    let gid = gid.map_or(Some(group), |gid| gid.parse().ok())?;
    Some(User { uid: uid.parse().ok()?, gid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_the_containers_users_or_open_to_its_group() {
        let (tenant, root, other) = (User { uid: 7, gid: 8 }, User { uid: 0, gid: 0 }, User { uid: 5, gid: 6 });
        let id = |text: &str| ContainerUser::Id(text.to_owned());
        for (asked, worker, gives_away, user, owner, group) in [
            (ContainerUser::Tenant, root, true, Some("7:8"), Some(tenant), None),
            (ContainerUser::Tenant, other, false, Some("5:6"), None, None),
            (ContainerUser::Image, root, true, None, None, Some(8)),
            (ContainerUser::Image, other, false, None, None, Some(6)),
            (id("1:2"), root, true, Some("1:2"), Some(User { uid: 1, gid: 2 }), None),
            (id("1"), root, true, Some("1:8"), Some(User { uid: 1, gid: 8 }), None),
            (id("1"), other, false, Some("1"), None, Some(6)),
        ] {
            let expected = Identity { user: user.map(str::to_owned), owner, group };
            assert_eq!(Identity::of(&asked, tenant, worker, gives_away), expected, "{asked:?}");
        }
    }
}
