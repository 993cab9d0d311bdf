"""The nano-vllm package (https://github.com/GeeeekExplorer/nano-vllm) behind the backend interface.

``loading`` makes its parts, ``package`` adapts them where it must, ``adapter`` drives them and
``admission`` keeps away from them what they cannot do. Only ``package`` imports nano-vllm, and only
``loading`` imports ``package``: without it everything else works.
"""
