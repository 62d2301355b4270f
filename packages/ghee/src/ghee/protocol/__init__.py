"""The rules of a run: pure functions of (state, event) -> (state, actions).

Nothing here may touch a socket, a clock, a process or a file; `docs/protocol.md` says the same in prose. What moves
bytes lives in `ghee.transfer`, what starts processes in `ghee.launch`, what connects both to these rules in
`ghee.driver` and `ghee.rank`.
"""
