//! System calls that no task needs and that get programs out of their place, or at bugs of the kernel: refused with EPERM.
//!
//! A list of what is denied, not of what is allowed: tasks are arbitrary programs, and a list of what they may call would
//! be wrong with every new C library. `clone3` is answered with ENOSYS, because its flags are out of a filter's sight and
//! every C library then falls back to `clone`, whose flags are not. The same for the x32 variants of all calls, which
//! would pass a list of 64-bit numbers.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

/// Refused whatever the arguments.
const DENIED: &[libc::c_long] = &[
    // Mounts, old and new.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // Namespaces; unshare and clone by their flags, below.
    libc::SYS_setns,
    // Other processes' memory and descriptors.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Parts of the kernel with a history.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_fanotify_init,
    libc::SYS_vhangup,
    libc::SYS_lookup_dcookie,
    // Files by handle go round every directory on the way.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // The machine itself.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_syslog,
    libc::SYS_nfsservctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// New namespaces of any kind.
const CLONE_NEW: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];
/// `unshare` knows one more; in `clone` the bit is part of the exit signal.
const CLONE_NEWTIME: u64 = 0x80;

/// Requests that put characters into a terminal's input.
const TERMINAL_INPUT: [u64; 2] = [0x5412, 0x541c];

/// Families of sockets that programs use; the others are the kernel's least looked-after code.
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Denied calls that are compared one after the other.
const GROUP: usize = 6;

/// The filter.
///
/// When it is installed, the kernel walks through it once for each call that it has, to know those that are always allowed.
/// One list of comparisons makes that 0.3 ms for every task; in groups, of which a call passes through one, it is 0.05 ms.
pub(super) fn program() -> Result<BpfProgram, String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| e.to_string())?;
    let mut rules = denied()?.into_iter();
    let mut groups: Vec<(u32, BpfProgram)> = Vec::new();
    loop {
        let group: BTreeMap<i64, Vec<SeccompRule>> = rules.by_ref().take(GROUP).collect();
        let Some(first) = group.keys().next().and_then(|first| u32::try_from(*first).ok()) else { break };
        let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
        let filter = SeccompFilter::new(group, SeccompAction::Allow, refuse, arch).map_err(|e| e.to_string())?;
        groups.push((first, filter.try_into().map_err(|e: seccompiler::BackendError| e.to_string())?));
    }
    Ok(dispatch(groups))
}

fn denied() -> Result<BTreeMap<i64, Vec<SeccompRule>>, String> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    let bit = |bit: u64| condition(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bit), bit);
    let mut namespaces = Vec::new();
    for flag in CLONE_NEW {
        namespaces.push(rule(vec![bit(u64::from(flag.unsigned_abs()))?])?);
    }
    rules.insert(libc::SYS_clone, namespaces.clone());
    namespaces.push(rule(vec![bit(CLONE_NEWTIME)?])?);
    rules.insert(libc::SYS_unshare, namespaces);
    let mut ioctls = Vec::new();
    for request in TERMINAL_INPUT {
        ioctls.push(rule(vec![condition(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request)?])?);
    }
    rules.insert(libc::SYS_ioctl, ioctls);
    let other = |family: &libc::c_int| condition(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, u64::from(family.unsigned_abs()));
    rules.insert(libc::SYS_socket, vec![rule(FAMILIES.iter().map(other).collect::<Result<_, _>>()?)?]);
    // Of others, that is: as the same user a task could leave the worker without descriptors, or without time.
    let others = condition(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![rule(vec![others])?]);
    Ok(rules)
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, String> {
    SeccompRule::new(conditions).map_err(|e| e.to_string())
}

fn condition(argument: u8, length: SeccompCmpArgLen, compare: SeccompCmpOp, value: u64) -> Result<SeccompCondition, String> {
    SeccompCondition::new(argument, length, compare, value).map_err(|e| e.to_string())
}

/// Puts before the groups, each a filter that looks at the architecture itself, what leads to the one for a call's number;
/// by hand, because `seccompiler` has one answer a filter and no such steps.
fn dispatch(groups: Vec<(u32, BpfProgram)>) -> BpfProgram {
    const LOAD: u16 = 0x20;
    const JUMP: u16 = 0x05;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const X32: u32 = 0x4000_0000;
    const ERRNO: u32 = 0x0005_0000;
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap_or(u32::MAX);
    let mut program = vec![
        step(LOAD, 0, 0, 0),
        step(JUMP_IF_EQUAL, 1, 0, clone3),
        step(JUMP_IF_AT_LEAST, 0, 1, X32),
        step(RETURN, 0, 0, ERRNO | libc::ENOSYS.unsigned_abs()),
    ];
    // Two steps for each group but the last: not there when the number is in a later one, else a jump.
    let starts: Vec<u32> = groups.iter().map(|(first, _)| *first).collect();
    let last = starts.len().saturating_sub(1);
    let (mut here, mut there) = (0usize, 0usize);
    for (n, (_, group)) in groups.iter().enumerate() {
        here += if n < last { 2 } else { 1 };
        let after = 2 * last + 1 - here;
        if let Some(next) = starts.get(n + 1) {
            program.push(step(JUMP_IF_AT_LEAST, 1, 0, *next));
        }
        program.push(step(JUMP, 0, 0, u32::try_from(after + there).unwrap_or(u32::MAX)));
        there += group.len();
    }
    program.extend(groups.into_iter().flat_map(|(_, group)| group));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0000 | 1;
    const ENOSYS: u32 = 0x0005_0000 | 38;

    /// The kernel's machine, as far as these programs use it: the answer and the number of steps to it.
    fn answer(program: &[sock_filter], number: u32, arguments: [u64; 6]) -> (u32, usize) {
        let arch: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
        let mut data = [0u32; 16];
        (data[0], data[1]) = (number, arch);
        for (n, argument) in arguments.into_iter().enumerate() {
            (data[4 + 2 * n], data[5 + 2 * n]) = (argument as u32, (argument >> 32) as u32);
        }
        let (mut at, mut a) = (0usize, 0u32);
        for steps in 1.. {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            let jump = |yes: bool| usize::from(if yes { jt } else { jf });
            match code {
                0x20 => a = data[k as usize / 4],
                0x54 => a &= k,
                0x05 => at += k as usize,
                0x15 => at += jump(a == k),
                0x35 => at += jump(a >= k),
                0x25 => at += jump(a > k),
                0x06 => return (k, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
        unreachable!()
    }

    #[test]
    fn every_denied_call_is_found_in_its_group_and_no_other_one() {
        let program = program().expect("this architecture has filters");
        let by_arguments = [libc::SYS_clone, libc::SYS_unshare, libc::SYS_ioctl, libc::SYS_socket];
        let nothing = [0; 6];
        let mut longest = 0;
        for number in 0..600u32 {
            let call = libc::c_long::from(number);
            let (found, steps) = answer(&program, number, [0, 0, 0, 0, 0, 0]);
            let expected = match call {
                libc::SYS_clone3 => ENOSYS,
                // Family 0 is none of those that may be used.
                libc::SYS_socket => EPERM,
                _ if DENIED.contains(&call) => EPERM,
                _ => ALLOW,
            };
            assert_eq!(found, expected, "{number}");
            if !by_arguments.contains(&call) {
                longest = longest.max(steps);
            }
        }
        assert!(longest <= 80, "{longest} steps make its installation slow");
        assert_eq!(answer(&program, 0x4000_0000 | 39, nothing).0, ENOSYS);
        let number = |call: libc::c_long| u32::try_from(call).expect("a number");
        for flag in CLONE_NEW {
            let arguments = [u64::from(flag.unsigned_abs()) | 17, 0, 0, 0, 0, 0];
            assert_eq!(answer(&program, number(libc::SYS_clone), arguments).0, EPERM);
            assert_eq!(answer(&program, number(libc::SYS_unshare), arguments).0, EPERM);
        }
        let thread = [0x3d_0f00, 0, 0, 0, 0, 0];
        assert_eq!(answer(&program, number(libc::SYS_clone), thread).0, ALLOW);
        assert_eq!(answer(&program, number(libc::SYS_ioctl), [0, 0x5412, 0, 0, 0, 0]).0, EPERM);
        assert_eq!(answer(&program, number(libc::SYS_ioctl), [0, 0xdead_beef_0000_5412, 0, 0, 0, 0]).0, EPERM, "the kernel sees 32 bits");
        assert_eq!(answer(&program, number(libc::SYS_prlimit64), [1, 0, 0, 0, 0, 0]).0, EPERM);
        assert_eq!(answer(&program, number(libc::SYS_socket), [2, 1, 0, 0, 0, 0]).0, ALLOW);
        assert_eq!(answer(&program, number(libc::SYS_socket), [40, 1, 0, 0, 0, 0]).0, EPERM);
    }
}
