"""The demonstration behind `dwcp demo`: honest changing state, a shaped link, rivals and a report.

Nothing is imported here, because the link and the rivals are processes of their own
(``python -m dwcp_fast.demo.link``) and should start without numpy or matplotlib.
The entry is :func:`dwcp_fast.demo.run.run_demo`.
"""
