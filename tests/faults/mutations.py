"""Protections taken away one at a time, and the tests that notice. Run them with `make mutants`.

`promise`: P1 to P25 are those of docs/reliability.md, T1 to T9 the points that must hold whoever
wrote the files: T1 a dataset is data, T2 a flipped bit is never an answer, T3 one run, one code,
T4 it always ends, T5 a poison row costs one row, T6 outputs never destroy inputs, T7 hostile inputs
are one line, T8 uploads are verified, T9 verified means verified.

Where two protections guard the same thing, a mutation takes both away. `test_mutations.py` checks
that every text is still there and every test still exists.
"""

# ruff: noqa: E501 (lines of the code, quoted)
from __future__ import annotations

from dataclasses import dataclass

FAULTS, RUN, TRUST = "tests/test_faults.py", "tests/test_run.py", "tests/test_trust.py"
CLI, SHARDS, HOSTILE = "tests/test_cli.py", "tests/test_shards.py", "tests/test_hostile.py"
UPLOAD, GUARD, RAY = "tests/test_upload.py", "tests/test_guard.py", "tests/test_ray.py"


@dataclass(frozen=True)
class Edit:
    """`old` occurs exactly once in `file` and becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    """One protection less. `tests`: node ids; one of them fails, or hangs."""

    name: str
    promise: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


def _one(promise: str, name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, promise, (Edit(file, old, new),), tests)


_KILLS = (
    Mutation(
        "no sweep of leftovers", "P1",
        (
            Edit("pipeline/rundir.py", "            for leftover in temporaries(folder):",
                 "            for leftover in ():"),
            Edit("skel_fit/atomic.py", "    for entry in list(os.scandir(folder)):",
                 "    for entry in ():"),
        ),
        (f"{FAULTS}::test_dying_at_every_file_operation",),
    ),
    _one("P1", "a start is not on record before the work", "pipeline/rundir.py",
         '        self._set(replace(self.attempts(shard), running="apart" if isolated else "here"))',
         "        isolated",
         f"{FAULTS}::test_a_poison_row_in_process_is_counted_on_disk"),
    _one("P2", "written in place", "pipeline/output_files.py",
         "    with published(path, len(data), tidy=tidy) as stream:\n        view = memoryview(data)",
         "    sweep(path.parent)\n"
         "    place = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)\n"
         "    with os.fdopen(place, 'wb', buffering=0) as stream:\n"
         "        view = memoryview(data)",
         f"{FAULTS}::test_dying_at_every_file_operation"),
    _one("P2", "rename before fsync", "skel_fit/atomic.py",
         "            os.fsync(stream.fileno())\n            temporary.replace(path)",
         "            temporary.replace(path)\n            os.fsync(stream.fileno())",
         f"{FAULTS}::test_every_rename_comes_after_fsync_and_before_fsync_of_the_folder"),
    _one("P2", "no fsync of the folder", "skel_fit/atomic.py",
         "        sync_directory(path.parent)\n    finally:", "    finally:",
         f"{FAULTS}::test_every_rename_comes_after_fsync_and_before_fsync_of_the_folder"),
    _one("P15", "workers outlive their driver", "pipeline/children.py",
         "        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)", "        pass",
         f"{FAULTS}::test_a_killed_driver_takes_its_workers_along"),
    _one("P16", "no lock", "pipeline/locking.py",
         "        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)", "        pass",
         f"{CLI}::test_a_second_run_is_75_at_once_and_changes_nothing"),
    _one("P17", "SIGTERM is left to Python", "stages/cli.py",
         "    signal.signal(signal.SIGTERM, _terminate)", "    pass",
         f"{FAULTS}::test_signals_stop_the_run_and_leave_no_process"),
    _one("P17", "a stopped run is held against its shards", "pipeline/run.py",
         "            for shard in sorted(self._busy):\n                self._ledger.forget(shard)",
         "",
         f"{FAULTS}::test_signals_stop_the_run_and_leave_no_process"),
    _one("P8", "a full disk is no error of ours", "pipeline/output_files.py",
         "    except OSError as error:\n        raise output_error(error, path, written) from error",
         "    finally:\n        pass",
         f"{FAULTS}::test_a_file_size_limit_ends_cleanly"),
    _one("P13", "a lost actor is an error of the run", "pipeline/executors/ray.py",
         "    except RayActorError as error:\n        return Lost(",
         "    except RayActorError as error:\n        raise RuntimeError(",
         f"{RAY}::test_a_killed_actor_loses_nothing"),
    _one("P13", "the shard of a lost worker is forgotten", "pipeline/executors/pool.py",
         "        return [Died(worker.order.shard, lost.reason, lost.memory)]", "        return []",
         f"{FAULTS}::test_a_poison_row_costs_one_row"),
)  # fmt: skip

_BYTES = (
    _one("P3", "bytes depend on the process", "pipeline/shards.py",
         '        "plan_id": plan.plan_id,\n        "row_start": start,',
         '        "plan_id": plan.plan_id,\n        "by": __import__("os").getpid(),\n'
         '        "row_start": start,',
         f"{RUN}::test_bytes_do_not_depend_on_workers_or_order"),
    _one("P3", "HDF5 notes the time", "pipeline/shards.py",
         "data=np.ascontiguousarray(values), **options)",
         "data=np.ascontiguousarray(values), track_times=True, **options)",
         f"{FAULTS}::test_random_kills_change_nothing",
         f"{FAULTS}::test_want_of_memory_is_told_from_poison"),
    _one("P4", "a row depends on its neighbours", "skel_fit/fit.py",
         "    skel_betas = _skel_betas(skel, smpl, betas, solver)\n    found = _search(",
         "    skel_betas = _skel_betas(skel, smpl, betas, solver) + 1e-6 * betas.mean()\n"
         "    found = _search(",
         "tests/test_fit.py::test_a_row_is_bit_equal_in_any_company"),
    _one("P5", "no digest check", "pipeline/rundir.py",
         "        if checksums and file_record(path).sha256 != receipt.sha256:",
         "        if False:",
         f"{RUN}::test_damage_is_found_and_only_it_is_redone"),
    _one("P5", "existence is completion", "pipeline/rundir.py",
         "        problem = self._mismatch(plan, shard, receipt, checksums or not plan.sealed)",
         '        problem = ""',
         f"{RUN}::test_damage_is_found_and_only_it_is_redone"),
    _one("P5", "a receipt of another shard is taken", "pipeline/rundir.py",
         "        if (receipt.shard, (receipt.row_start, receipt.row_stop)) != "
         "(shard, plan.rows_of(shard)):",
         "        if False:",
         f"{RUN}::test_whole_shards_of_other_places_are_not_taken"),
    _one("P5", "a receipt of another plan is taken", "pipeline/rundir.py",
         "        if receipt.plan_id != plan.plan_id:", "        if False:",
         f"{RUN}::test_whole_shards_of_other_places_are_not_taken"),
    _one("P6", "plan check skipped", "pipeline/plan.py",
         "    if old.plan_id == new.plan_id:\n        return", "    return",
         f"{RUN}::test_a_changed_input_is_never_mixed_in"),
    _one("P6", "plan check skipped after the lock", "pipeline/run.py",
         "        if run.plan_path.exists():\n"
         "            check_same_plan(run.plan(), found.plan, run.path)\n"
         "        run.write_plan(found.plan)",
         "        run.write_plan(found.plan)",
         f"{RUN}::test_a_plan_that_came_just_before_the_lock_is_not_mixed_in"),
    _one("P6", "a changed source is not noticed", "pipeline/task.py",
         "        if _stat(Path(seen[0])) != seen:", "        if False:",
         f"{RUN}::test_a_source_that_changes_during_the_run_is_noticed"),
    _one("P6", "software check off", "pipeline/task.py",
         "    if other:\n        raise InputError(", "    if False:\n        raise InputError(",
         f"{RUN}::test_a_worker_with_other_software_or_models_does_not_work"),
    _one("P6", "models of a worker unchecked", "pipeline/task.py",
         "        check_models(job.plan, job.models)\n", "",
         f"{RUN}::test_a_worker_with_other_software_or_models_does_not_work"),
    _one("P7", "a row twice", "pipeline/plan.py",
         "        return start, min(start + self.shard_rows, self.rows)",
         "        return start, min(start + self.shard_rows + 1, self.rows)",
         f"{SHARDS}::test_shards_partition_the_rows"),
    _one("P7", "rows in are not counted against rows out", "pipeline/rundir.py",
         "        if not sum(receipt.status.values()) == receipt.rows == "
         "receipt.row_stop - receipt.row_start:",
         "        if False:",
         f"{TRUST}::test_counts_and_errors_are_those_of_the_shards"),
    _one("P19", "a rerun writes the same again", "pipeline/output_files.py",
         "        if path.read_bytes() == data:\n            return False",
         "        path.read_bytes()",
         f"{RUN}::test_a_finished_run_touches_nothing"),
    _one("P20", "a preview makes the folders", "pipeline/run.py",
         "        states = run.inspect_all(found.plan)\n        wanted = _wanted(",
         "        run.prepare()\n        states = run.inspect_all(found.plan)\n"
         "        wanted = _wanted(",
         f"{RUN}::test_preview_counts_equal_the_run_and_write_nothing",
         f"{CLI}::test_missing_and_broken_inputs_are_5_and_write_nothing",
         f"{RUN}::test_a_preview_of_nothing_makes_no_folder"),
    _one("P21", "a worker keeps its shards", "pipeline/task.py",
         "        attributes = root_attributes(plan, shard, order.concessions)\n",
         "        attributes = root_attributes(plan, shard, order.concessions)\n"
         "        self.__dict__.setdefault('kept', []).append(columns)\n",
         f"{FAULTS}::test_memory_does_not_grow_with_the_subset"),
    _one("P22", "the seal stands before the HDF5 part", "pipeline/seal.py",
         "    return image + _seal(extents, len(image), lambda start, stop: image[start:stop])",
         "    return _seal(extents, len(image), lambda start, stop: image[start:stop]) + image",
         f"{FAULTS}::test_shards_open_with_stock_h5py_alone"),
    _one("P23", "loader processes shift the rows", "pipeline/dataset.py",
         "            inside = slice(max(start - first, 0), min(stop, last) - first)",
         "            inside = slice(max(start - first, 0) % 699, min(stop, last) - first)",
         f"{FAULTS}::test_readers_agree"),
    _one("P23", "an epoch leaves rows out", "stages/regressor/data/loader.py",
         "            mine = order[k * size : (k + 1) * size][self.rank :: self.world]",
         "            mine = order[k * size // 2 : k * size // 2 + size][self.rank :: self.world]",
         "tests/test_regressor_data.py::test_batches_hold_what_the_shards_hold"),
    _one("P24", "complete on a subset", "pipeline/summary.py",
         "    complete = accounted and len(receipts) == plan.shards", "    complete = True",
         f"{CLI}::test_partial_runs_end_with_0_and_not_complete"),
    _one("P25", "damage is not redone", "pipeline/run.py",
         '        and state.state in ("pending", "damaged")', '        and state.state == "pending"',
         f"{FAULTS}::test_any_history_ends_well"),
    _one("P25", "a finished shard stays on the list of attempts", "pipeline/run.py",
         "            run.clear_attempts(state.shard)  # died between the receipt and the "
         "bookkeeping",
         "            pass",
         f"{RUN}::test_dying_between_receipt_and_bookkeeping_leaves_no_record"),
)  # fmt: skip

_ROWS = (
    _one("P10", "one bad row takes its shard along", "pipeline/task.py",
         "    accepted = rows.reasons == \"\"\n",
         "    accepted = (rows.reasons == \"\") & (rows.reasons == \"\").all()\n",
         f"{RUN}::test_rows_in_are_rows_out_and_originals_are_untouched"),
    _one("P10", "poses that are not finite are fitted", "skel_fit/rejections.py",
         "    yield \"non_finite_pose\", ~np.isfinite(poses).all(1)",
         "    yield \"non_finite_pose\", np.zeros(len(poses), bool)",
         f"{RUN}::test_rows_in_are_rows_out_and_originals_are_untouched"),
    _one("P14", "quarantine off", "pipeline/attempts.py",
         "        return (self.exhausted and self.searched) or self.lost >= MAX_LOST",
         "        return False",
         f"{FAULTS}::test_what_no_row_is_to_blame_for_is_given_up"),
    _one("P14", "a hopeless search goes on", "pipeline/attempts.py",
         "        return len(self.found) > MAX_CRASHED", "        return False",
         f"{FAULTS}::test_what_no_row_is_to_blame_for_is_given_up"),
    _one("T5", "no search for the row", "pipeline/attempts.py",
         "        return self.exhausted and not self.searched and self.lost < MAX_LOST",
         "        return False",
         f"{FAULTS}::test_a_poison_row_costs_one_row"),
    _one("T5", "a half is blamed instead of its row", "pipeline/attempts.py",
         "        self._parts += _halves(first, stop)",
         "        self.found |= dict.fromkeys(range(first, stop), reason)",
         f"{FAULTS}::test_a_poison_row_costs_one_row"),
    _one("T5", "a row is blamed for one bad end", "pipeline/attempts.py",
         "ROW_TRIES = 2", "ROW_TRIES = 1",
         f"{RUN}::test_a_row_that_fails_once_is_not_left_out"),
    _one("T5", "rows left out are not on record", "pipeline/concessions.py",
         "    write_bytes(path, sealed_json(record))", "    sealed_json(record)",
         f"{FAULTS}::test_a_poison_row_costs_one_row"),
    _one("T5", "shards made with other concessions are taken", "pipeline/rundir.py",
         "        if conceded.digest != receipt.concessions:", "        if False:",
         f"{FAULTS}::test_a_poison_row_costs_one_row"),
    _one("T5", "want of memory counts as poison", "pipeline/executors/base.py",
         "    if isinstance(error, MemoryError) or type(error).__name__ == \"OutOfMemoryError\":\n"
         "        return True",
         "    if type(error).__name__ == \"OutOfMemoryError\":\n        return True",
         f"{FAULTS}::test_want_of_memory_is_told_from_poison"),
    _one("T4", "stall detection off", "pipeline/executors/pool.py",
         "            if now - worker.since > allowed:", "            if False:",
         f"{FAULTS}::test_it_always_ends"),
    _one("T4", "slow counts as hung", "pipeline/executors/pool.py",
         "        worker.beat, worker.since = beat, now", "        worker.beat = beat",
         f"{FAULTS}::test_slow_is_not_hung"),
    _one("T4", "a stuck upload is waited for", "pipeline/uploading.py",
         "        elif time.monotonic() - self._try.last > self._limit:", "        elif False:",
         f"{UPLOAD}::test_a_stuck_upload_is_given_up_and_the_conversion_is_kept"),
    _one("T3", "code check of workers off", "pipeline/provenance.py",
         "        if found != dict(expected):", "        if False:",
         f"{FAULTS}::test_a_worker_with_other_code_writes_nothing"),
    _one("T3", "what is imported later may be edited", "pipeline/provenance.py",
         "            if not path.is_file() or sha256_bytes(path.read_bytes()) != "
         "self._digests[name]:",
         "            if False:",
         "tests/test_provenance.py::test_one_code_sees_what_is_edited_while_it_works"),
    _one("P18", "local runs import Ray", "pipeline/run.py",
         "from pipeline.executors.local import InProcess, SpawnPool\n",
         "from pipeline.executors.local import InProcess, SpawnPool\n"
         "import pipeline.executors.ray\n",
         f"{CLI}::test_local_runs_do_not_import_ray_and_one_worker_is_one_process"),
)  # fmt: skip

_FILES = (
    _one("P9", "members may claim any size", "pipeline/readers/npz.py",
         "        if expected != size:", "        if False:",
         f"{FAULTS}::test_broken_sources_need_little_memory",
         "tests/test_readers.py::test_lies_are_seen_before_anything_is_read"),
    _one("P9", "no CRC of label files", "pipeline/readers/npz.py",
         "        for name, member in self.members.items():\n"
         "            self._guard(name, partial(self._check_crc, member))",
         "        return",
         f"{CLI}::test_missing_and_broken_inputs_are_5_and_write_nothing"),
    _one("P11", "pickles get what they ask for", "skel_fit/restricted_pickle.py",
         "        if (module, name) not in self._names:\n            raise PickleError("
         "f\"refused: the pickle asks for {module}.{name}\"[:160])\n"
         "        return self._names[module, name]",
         "        found = super().find_class(module, name)\n"
         "        self._names = {**self._names, (module, name): found}\n"
         "        return self._names[module, name]",
         "tests/test_readers.py::test_pickles_run_nothing",
         "tests/test_model_files.py::test_hostile_pickles_are_refused_and_run_nothing"),
    _one("P12", "names may climb", "pipeline/paths.py",
         "        and \"..\" not in name.split(\"/\")\n", "",
         "tests/test_readers.py::test_a_name_is_accepted_only_inside_the_root"),
    _one("P12", "links may lead out of the data root", "pipeline/paths.py",
         "    return path.resolve().is_relative_to(root.resolve())", "    return True",
         f"{RUN}::test_a_source_link_out_of_the_data_root_is_refused"),
    _one("T1", "a plan names what is imported", "pipeline/fitters.py",
         "    make = _FITTERS.get(name)\n",
         "    make = _FITTERS.get(name)\n"
         "    if make is None and ':' in name:\n"
         "        module, _, attribute = name.partition(':')\n"
         "        make = getattr(__import__(module), attribute)\n",
         f"{TRUST}::test_no_verb_imports_or_calls_what_a_file_names",
         f"{TRUST}::test_data_of_an_unknown_fitter_is_not_verified_by_guessing"),
    _one("T1", "columns may be links", "pipeline/shards.py",
         "        _check_links(path, file)\n", "        pass\n",
         f"{TRUST}::test_values_that_are_not_in_the_shard_are_refused"),
    _one("T1", "columns may lie in other files", "pipeline/shards.py",
         "    kind = _refused(dataset)\n", "    kind = \"\"\n",
         f"{TRUST}::test_values_that_are_not_in_the_shard_are_refused"),
    _one("T1", "names move the cursor", "stages/terminal.py",
         "        if char == \"\\n\" or unicodedata.category(char) not in _UNPRINTABLE",
         "        if True",
         f"{TRUST}::test_names_are_printed_without_terminal_escapes"),
    _one("T1", "names in plans are believed", "pipeline/plan.py",
         "    _check_names(path, plan)\n    return plan", "    return plan",
         f"{TRUST}::test_a_forged_plan_is_one_line"),
    _one("T2", "seal not checked", "pipeline/shards.py",
         "    if sealed:\n        check_seal(path)\n", "",
         f"{TRUST}::test_a_flipped_bit_anywhere_in_a_shard_is_refused",
         f"{TRUST}::test_a_shard_without_its_seal_is_refused"),
    _one("T2", "no checksum of chunks", "pipeline/shards.py",
         ", \"fletcher32\": True}", "}",
         f"{SHARDS}::test_a_flipped_bit_in_the_data_is_refused",
         f"{SHARDS}::test_layout_is_what_the_format_document_says"),
    _one("T2", "digests of records not checked", "pipeline/output_files.py",
         "    if not intact:\n        raise InputError(f\"{path}: damaged: its content",
         "    if False:\n        raise InputError(f\"{path}: damaged: its content",
         f"{TRUST}::test_every_flip_of_a_receipt_is_harmless_and_heals",
         f"{TRUST}::test_damaged_side_files_are_told_and_made_anew"),
    _one("T2", "receipts believed", "pipeline/rundir.py",
         "        if found is not None and found.status != dict(receipt.status):",
         "        if False:",
         f"{TRUST}::test_counts_and_errors_are_those_of_the_shards"),
    _one("T2", "an edited plan is read", "pipeline/plan.py",
         "        intact = plan.plan_id == content[\"plan_id\"]", "        intact = True",
         f"{SHARDS}::test_an_edited_plan_is_refused"),
    _one("T2", "digests of checkpoints not checked", "stages/regressor/network/checkpoints.py",
         "    if digest.digest() != tail[len(_MAGIC) :]:", "    if False:",
         "tests/test_regressor_networks.py::test_a_flipped_bit_of_a_checkpoint_is_refused"),
    _one("T6", "outputs may be inputs", "pipeline/guard.py",
         "        there = [(output, found) for output in outputs if (found := _identity(output))]\n",
         "        there: list = []\n",
         f"{GUARD}::test_no_verb_writes_over_what_it_reads"),
    _one("T6", "files are told by their names", "pipeline/guard.py",
         "        found = path.stat()\n    except OSError:\n        return None\n"
         "    return found.st_dev, found.st_ino",
         "        path.stat()\n    except OSError:\n        return None\n"
         "    return 0, hash(str(path))",
         f"{GUARD}::test_no_verb_writes_over_what_it_reads"),
    _one("T6", "who still writes is swept", "skel_fit/atomic.py",
         "                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
         "                if entry.is_dir",
         "                if entry.is_dir",
         f"{GUARD}::test_who_still_writes_is_left_alone"),
    _one("T6", "leftovers beside outputs stay", "skel_fit/atomic.py",
         "    for entry in list(os.scandir(folder)):", "    for entry in ():",
         f"{GUARD}::test_leftovers_are_swept_by_the_next_writer"),
    _one("T7", "headers of any length", "skel_fit/npy_header.py",
         "    if length > MAX_BYTES:", "    if False:",
         f"{HOSTILE}::test_a_header_says_three_things_in_few_words"),
    _one("T7", "headers of any form", "skel_fit/npy_header.py",
         "    if not _HEADER.fullmatch(text) or any(len(values) != 1 for values in found.values()):",
         "    if any(len(values) != 1 for values in found.values()):",
         f"{HOSTILE}::test_a_header_says_three_things_in_few_words"),
    _one("T7", "bombs of many members", "pipeline/readers/npz.py",
         "            _check_expansion(packed, sum(info.file_size for info in archive.infolist()))\n",
         "",
         f"{HOSTILE}::test_thirty_members_that_expand_below_the_cap_are_a_bomb_together"),
    _one("T7", "aliases in YAML", "skel_fit/strict_yaml.py",
         "        if isinstance(event, yaml.AliasEvent):", "        if False:",
         f"{HOSTILE}::test_hostile_manifests_are_one_line"),
    _one("T7", "pipes as label files", "pipeline/paths.py",
         "    if path.exists() and not path.is_file():", "    if False:",
         f"{HOSTILE}::test_a_pipe_as_label_file_is_refused"),
    _one("T7", "ranges of shards are counted out", "pipeline/run.py",
         "            if part.stop > plan.shards:", "            if max(list(part)) >= 1 << 40:",
         f"{HOSTILE}::test_a_range_of_shards_is_never_counted_out"),
    _one("T7", "strays are not told", "pipeline/rundir.py",
         "                if path.name not in ours and not path.name.endswith(TEMPORARY_SUFFIX):",
         "                if False:",
         f"{HOSTILE}::test_a_shard_of_another_plan_is_reported"),
    _one("T7", "a missing flock is no error", "pipeline/locking.py",
         "        if error.errno not in _UNSUPPORTED:\n", "        return\n"
         "        if error.errno not in _UNSUPPORTED:\n",
         f"{HOSTILE}::test_without_locks_the_user_is_told_and_may_insist"),
    _one("T8", "uploads compared by size", "pipeline/upload.py",
         "    if found[\"size\"] != local.stat().st_size:\n        return False\n",
         "    return bool(found[\"size\"] == local.stat().st_size)\n",
         f"{UPLOAD}::test_an_upload_that_arrives_changed_ends_the_run",
         f"{UPLOAD}::test_fetch_is_a_verb_goes_on_and_checks"),
    _one("T8", "fetch escape", "pipeline/upload.py",
         "        if not stays_inside(name) or not is_inside(directory / name, directory):",
         "        if False:",
         f"{UPLOAD}::test_no_object_name_leads_out_of_the_folder"),
    _one("T8", "what was fetched is not checked", "pipeline/upload.py",
         "    if bad:\n        raise Incomplete(f\"{directory}: shard",
         "    if False:\n        raise Incomplete(f\"{directory}: shard",
         f"{UPLOAD}::test_fetch_is_a_verb_goes_on_and_checks"),
)  # fmt: skip

_VERIFY = (
    _one("T9", "residuals are not computed again", "pipeline/recomputation.py",
         "            if difference.max(initial=0.0) > RESIDUAL_TOLERANCE:", "            if False:",
         f"{RUN}::test_verify_recomputes_residuals_and_compares_originals"),
    _one("T9", "originals are not compared", "pipeline/recomputation.py",
         "        if original.tobytes() != stored[item.stored].tobytes():", "        if False:",
         f"{RUN}::test_verify_recomputes_residuals_and_compares_originals"),
    _one("T9", "reasons of rejected rows are believed", "pipeline/recomputation.py",
         "        if status.reason != reason:", "        if False:",
         f"{TRUST}::test_a_row_cannot_be_said_to_be_rejected"),
    _one("T9", "crashed rows are believed", "pipeline/verify.py",
         "    for row in [row for row in crashed if row not in state.concessions.rows][:1]:",
         "    for row in []:",
         f"{TRUST}::test_a_row_cannot_be_said_to_be_rejected"),
    _one("T9", "only fitted rows are sampled", "pipeline/recomputation.py",
         "            chosen = np.union1d(_spread(~without, fitted), _spread(without, rejected))",
         "            chosen = _spread(~without, fitted)",
         f"{TRUST}::test_a_row_cannot_be_said_to_be_rejected"),
    _one("T9", "fits are believed", "pipeline/recomputation.py",
         "        problems = [_named(state, text) for text in _differences(stored, made, start)]",
         "        problems: list[str] = []",
         f"{TRUST}::test_full_verification_compares_every_row"),
    _one("T9", "diagnostics of fits are believed", "pipeline/recomputation.py",
         "            good |= ~same", "            good |= True",
         f"{TRUST}::test_full_verification_compares_every_row"),
    _one("T9", "a plan says how many rows there are", "pipeline/verify.py",
         "    if source.rows != plan.rows:", "    if False:",
         f"{TRUST}::test_a_plan_cannot_lie_about_its_inputs"),
    _one("T9", "a plan says which models were used", "pipeline/verify.py",
         "    if made.factory.models(made.models, pairs) != plan.models:", "    if False:",
         f"{TRUST}::test_a_plan_cannot_lie_about_its_inputs"),
    _one("T9", "columns of any type", "pipeline/verify.py",
         "        if found != expected:", "        if False:",
         f"{TRUST}::test_columns_hold_what_columns_of_their_name_hold"),
    _one("T9", "rejected rows may hold values", "pipeline/verify.py",
         "        if not ((values == empty) | (np.isnan(values) & np.isnan(empty)))[rejected].all():",
         "        if False:",
         f"{TRUST}::test_columns_hold_what_columns_of_their_name_hold"),
    _one("T9", "another label file is taken", "pipeline/verify.py",
         "    if tuple(file_record(Path(path)) for path in source.files) != plan.source_files:",
         "    if False:",
         f"{RUN}::test_a_changed_input_is_never_mixed_in"),
)  # fmt: skip

MUTATIONS = (*_KILLS, *_BYTES, *_ROWS, *_FILES, *_VERIFY)
