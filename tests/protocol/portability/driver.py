"""Sends the cases of a module to a worker of the smallest kind, and says which of them came back right."""

import json
import pickle
import subprocess
import sys
import traceback


def drive(namespace, *, changes=True):
    """Prints, as its last line, JSON: the name of each case → "ok", or what went wrong."""
    from caravela.protocol import payload
    from caravela.protocol.functions import Held, export

    held, frames, wanted, results = Held(), [], [], {}

    def send(case, function, arguments, want):
        made = export(function, what="signal"), export(arguments, what="arguments")
        needs = held.missing([need for portable in made for need in portable.needs])
        frames.append((needs, *(portable.data for portable in made)))
        wanted.append((case, want))

    for case, steps in [*namespace["cases"](), *(namespace["changes"]() if changes else ())]:
        results[case] = "ok"
        for function, arguments, want in steps:
            try:
                if arguments is None:
                    function(want)
                else:
                    send(case, function, arguments, want)
            except BaseException:
                results[case] = traceback.format_exc()
    command = [sys.executable, "-c", "import driver; driver.serve()"]
    done = subprocess.run(command, input=pickle.dumps((sys.path, frames)), stdout=subprocess.PIPE, check=True)
    for (case, want), (ok, answer) in zip(wanted, pickle.loads(done.stdout), strict=True):
        got = payload.decode(answer) if ok else answer
        if not ok:
            results[case] = answer
        elif type(got) is not type(want) or got != want:
            results[case] = f"{got!r} instead of {want!r}"
    print()
    print(json.dumps(results))


def serve():
    from caravela.protocol import payload
    from caravela.protocol.messages import Code
    from caravela.protocol.mirror import Importer

    path, frames = pickle.load(sys.stdin.buffer)
    sys.path[:] = path
    importer = Importer()
    answers = []
    for needs, function, arguments in frames:
        try:
            for need in needs:
                importer.code(need) if isinstance(need, Code) else importer.define(need)
            answers.append((True, payload.encode(importer.load(function)(*importer.load(arguments)))))
        except BaseException:
            answers.append((False, traceback.format_exc()))
    assert not {"caravela.protocol.functions", "caravela.protocol.encoder"} & sys.modules.keys(), "the host's side"
    sys.stdout.buffer.write(pickle.dumps(answers))
