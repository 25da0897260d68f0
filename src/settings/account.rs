//! Users and groups: names and numbers are looked up once, before the first fork; a process that has given up its
//! privileges or changed its root directory could not.

use std::ffi::CString;

use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgrouplist, getgroups};
use rustix::thread::{CapabilitySet, capabilities};

use super::outside;

/// A user.
#[derive(Clone, Debug)]
pub struct Account {
    uid: Uid,
    /// All groups of the user, the primary one first; none: the user is not in the database.
    groups: Vec<Gid>,
}

/// The user and groups of a process for which this user, this group or both are configured: that group only, otherwise
/// all groups of the user. No groups: those of the server.
pub fn identity(user: Option<Account>, group: Option<Gid>) -> Result<(Option<Uid>, Vec<Gid>), String> {
    match (user, group) {
        (Some(Account { uid, groups }), None) if groups.is_empty() => {
            Err(format!("needs a group, as the user database has no user {uid}"))
        }
        (Some(Account { uid, groups }), None) => Ok((Some(uid), groups)),
        (user, group) => Ok((user.map(|account| account.uid), group.into_iter().collect())),
    }
}

/// The value of an option that names a user.
pub fn user(text: &str) -> Result<Account, String> {
    must_be_root("another user")?;
    let expected = "expected the name or number of a user";
    let failed = |error: nix::Error| format!("{error}; {expected}");
    let known = outside::ask(format!("account {text}"), || {
        let known = match id(text) {
            Some(number) => User::from_uid(Uid::from_raw(number)).map_err(failed)?,
            None => User::from_name(text).map_err(failed)?,
        };
        let Some(user) = known else { return Ok(None) };
        let name = CString::new(user.name).map_err(|_| expected.to_owned())?;
        let mut groups = getgrouplist(&name, user.gid).map_err(failed)?;
        groups.retain(|group| *group != user.gid);
        groups.insert(0, user.gid);
        Ok(Some((user.uid.as_raw(), groups.into_iter().map(Gid::as_raw).collect::<Vec<_>>())))
    })?;
    let unknown = || id(text).map(|number| (number, Vec::new()));
    let (uid, groups) = known.or_else(unknown).ok_or(expected)?;
    Ok(Account { uid: Uid::from_raw(uid), groups: groups.into_iter().map(Gid::from_raw).collect() })
}

/// The owner of a socket, by name or number.
pub fn owner(text: &str) -> Result<Uid, String> {
    let expected = "expected the name or number of a user";
    let known = || {
        outside::ask(format!("user {text}"), || {
            let known = User::from_name(text).map_err(|error| format!("{error}; {expected}"))?;
            Ok(known.ok_or(expected)?.uid.as_raw())
        })
    };
    let user = Uid::from_raw(id(text).map_or_else(known, Ok)?);
    match may_chown() || user == geteuid() {
        true => Ok(user),
        false => Err("needs root: only root can give a socket to another user".to_owned()),
    }
}

/// The group of a socket, by name or number.
pub fn owning_group(text: &str) -> Result<Gid, String> {
    let group = any_group(text)?;
    let is_own = || group == getegid() || getgroups().is_ok_and(|groups| groups.contains(&group));
    match may_chown() || is_own() {
        true => Ok(group),
        false => {
            Err("expected a group of the user of the server: see usermod(8), -a -G GROUP USER".to_owned())
        }
    }
}

/// Whether this process can change the owner of files.
fn may_chown() -> bool {
    geteuid().is_root() || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::CHOWN))
}

/// The value of an option that names the group of workers.
pub fn group(text: &str) -> Result<Gid, String> {
    must_be_root("another group")?;
    any_group(text)
}

/// A group, by name or number.
fn any_group(text: &str) -> Result<Gid, String> {
    if let Some(number) = id(text) {
        return Ok(Gid::from_raw(number));
    }
    let expected = "expected the name or number of a group";
    let known = outside::ask(format!("group {text}"), || {
        let known = Group::from_name(text).map_err(|error| format!("{error}; {expected}"))?;
        Ok(known.ok_or(expected)?.gid.as_raw())
    })?;
    Ok(Gid::from_raw(known))
}

/// The number of a user or group, except the largest, which means "unchanged" to the kernel.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number != u32::MAX)
}

/// Fails unless this process is root.
pub fn must_be_root(for_this: &str) -> Result<(), String> {
    match geteuid().is_root() {
        true => Ok(()),
        false => Err(format!("needs root: only root can give workers {for_this}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ids(numbers: &[u32]) -> Vec<Gid> {
        numbers.iter().map(|number| Gid::from_raw(*number)).collect()
    }

    #[test]
    fn a_group_replaces_all_groups_of_the_user() {
        let user = || Some(Account { uid: Uid::from_raw(7), groups: ids(&[7, 8, 9]) });
        assert_eq!(identity(user(), None), Ok((Some(Uid::from_raw(7)), ids(&[7, 8, 9]))));
        assert_eq!(identity(user(), Some(Gid::from_raw(5))), Ok((Some(Uid::from_raw(7)), ids(&[5]))));
        assert_eq!(identity(None, Some(Gid::from_raw(5))), Ok((None, ids(&[5]))));
        assert_eq!(identity(None, None), Ok((None, Vec::new())));
    }

    #[test]
    fn an_unknown_user_needs_a_group() {
        let user = || Some(Account { uid: Uid::from_raw(4_000_000_000), groups: Vec::new() });
        assert!(identity(user(), None).unwrap_err().starts_with("needs a group"));
        assert_eq!(identity(user(), Some(Gid::from_raw(1))).unwrap().1, ids(&[1]));
    }
}
