"""miniclip app: an index of images in the browser, on this machine alone."""

from __future__ import annotations


def app(index: str, *, port: int = 7860, device: str = "auto") -> None:
    """Search an index in the browser, on this machine alone: by words, by an image, by both; and classify an image.

    Args:
        index: folder that miniclip index wrote
        port: of 127.0.0.1, where the page is; 0 takes any that is free
        device: auto, cpu, cuda, cuda:1, ...
    """
    from miniclip.common.arguments import check_range

    check_range("--port", port, 0, 65535)

    from miniclip.cli.devices import device_of
    from miniclip.search.app.answers import Answers
    from miniclip.search.app.server import Server
    from miniclip.search.query import open_searcher

    with Server(port) as server:  # before the long work, for the port may be taken
        server.answers = Answers(open_searcher(index, device_of(device)))
        count = len(server.answers.index.paths)
        print(f"{server.address} shows the {count:,} images of {index}; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # also what common/stopping makes of SIGTERM: there is nothing to lose
            print()
