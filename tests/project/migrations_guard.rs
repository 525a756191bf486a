//! scripts/check-migrations on scratch repositories.

use super::{is_here, root, said};
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

const KEYS: &str = "20260101000001_keys.sql";
const SECRETS: &str = "20260101000002_secrets.sql";

struct Repository(TempDir);

impl Repository {
    /// With two migrations in both directories, committed. `None`, in words, without git.
    fn new(test: &str) -> Option<Self> {
        if !is_here("git", test) {
            return None;
        }
        let repository = Self(tempfile::tempdir().unwrap());
        fs::create_dir(repository.path().join("scripts")).unwrap();
        fs::copy(root().join("scripts/check-migrations"), repository.path().join("scripts/check-migrations")).unwrap();
        repository.git(&["init", "-q", "-b", "main"]);
        for name in [KEYS, SECRETS] {
            repository.write(&format!("sqlite/{name}"), "CREATE TABLE a (b);\n");
            repository.write(&format!("postgres/{name}"), "CREATE TABLE a ();\n");
        }
        repository.commit("base");
        Some(repository)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn git(&self, arguments: &[&str]) {
        let identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"];
        let mut command = Command::new("git");
        // A hook or a worktree around this test must not redirect it.
        command.env_remove("GIT_DIR").env_remove("GIT_WORK_TREE").env_remove("GIT_INDEX_FILE");
        let output = command.args(identity).args(arguments).current_dir(self.path()).output().unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn commit(&self, message: &str) {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "-m", message]);
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path().join("migrations").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn write_both(&self, name: &str) {
        self.write(&format!("sqlite/{name}"), "SELECT 1;\n");
        self.write(&format!("postgres/{name}"), "SELECT 1;\n");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path().join("migrations").join(name)).unwrap();
    }

    /// Runs the guard from another directory than the repository's.
    fn check(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(self.path().join("scripts/check-migrations"));
        command.env_remove("GIT_DIR").env_remove("GIT_WORK_TREE").env_remove("MIGRATIONS_BASE");
        said(&command.args(arguments).current_dir("/").output().unwrap())
    }

    fn refused(&self, arguments: &[&str], words: &str) {
        let (status, text) = self.check(arguments);
        assert_eq!(status, Some(1), "{text}");
        assert!(text.contains(words), "{text}\nlacks: {words}");
    }

    fn accepted(&self, arguments: &[&str]) {
        assert_eq!(self.check(arguments), (Some(0), String::new()));
    }
}

#[test]
fn a_migration_may_be_appended_and_nothing_else() {
    let Some(repository) = Repository::new("a_migration_may_be_appended_and_nothing_else") else { return };
    repository.accepted(&[]);
    repository.write_both("20260102000001_more.sql");
    repository.accepted(&[]);

    repository.write(&format!("sqlite/{KEYS}"), "CREATE TABLE a (c);\n");
    repository.refused(&[], &format!("migrations/sqlite/{KEYS} was changed"));
    repository.write(&format!("sqlite/{KEYS}"), "CREATE TABLE a (b);\n");
    repository.accepted(&[]);

    repository.remove(&format!("sqlite/{SECRETS}"));
    repository.remove(&format!("postgres/{SECRETS}"));
    repository.refused(&[], &format!("migrations/postgres/{SECRETS} was removed or renamed"));
}

#[test]
fn a_change_that_was_committed_is_found_against_the_commit_before_it() {
    let test = "a_change_that_was_committed_is_found_against_the_commit_before_it";
    let Some(repository) = Repository::new(test) else { return };
    repository.write(&format!("postgres/{KEYS}"), "CREATE TABLE changed ();\n");
    repository.commit("change it");
    repository.accepted(&[]);
    repository.refused(&["HEAD~1"], "was changed since");
    repository.refused(&["no-such-commit"], "is no commit");
}

#[test]
fn on_a_branch_the_base_is_where_it_left_main() {
    let Some(repository) = Repository::new("on_a_branch_the_base_is_where_it_left_main") else { return };
    repository.git(&["update-ref", "refs/remotes/origin/main", "HEAD"]);
    repository.write_both("20260102000001_mine.sql");
    repository.commit("add it");
    repository.write("sqlite/20260102000001_mine.sql", "SELECT 2;\n");
    repository.commit("rewrite it before it lands");
    repository.accepted(&[]);
    repository.write(&format!("sqlite/{KEYS}"), "CREATE TABLE changed (b);\n");
    repository.commit("change what has landed");
    repository.refused(&[], "was changed since");
}

#[test]
fn what_was_released_is_held_whatever_the_base() {
    let Some(repository) = Repository::new("what_was_released_is_held_whatever_the_base") else { return };
    repository.git(&["tag", "v2.0.0"]);
    repository.write(&format!("sqlite/{KEYS}"), "CREATE TABLE changed (b);\n");
    repository.commit("change what was released");
    repository.refused(&["HEAD"], "was changed since");
}

#[test]
fn a_new_migration_sorts_after_those_that_databases_have() {
    let Some(repository) = Repository::new("a_new_migration_sorts_after_those_that_databases_have") else { return };
    repository.write_both("20260101000000_late.sql");
    repository.refused(&[], "is new and sorts before");
}

#[test]
fn both_directories_hold_the_same_well_formed_names() {
    let Some(repository) = Repository::new("both_directories_hold_the_same_well_formed_names") else { return };
    repository.write("sqlite/20260102000001_alone.sql", "SELECT 1;\n");
    repository.refused(&[], "only in sqlite: 20260102000001_alone.sql");
    repository.remove("sqlite/20260102000001_alone.sql");
    repository.write_both("2026_Bad-Name.sql");
    repository.refused(&[], "a name is YYYYMMDDNNNNNN_words.sql");
}

#[test]
fn a_tree_without_migrations_is_refused() {
    let Some(repository) = Repository::new("a_tree_without_migrations_is_refused") else { return };
    for name in [KEYS, SECRETS] {
        repository.remove(&format!("sqlite/{name}"));
    }
    repository.refused(&[], "migrations/sqlite is empty");
}
