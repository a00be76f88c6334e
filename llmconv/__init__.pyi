from .apply_recipe import apply as apply
from .bundle.bundle import Bundle as Bundle
from .chat.chat import Answer as Answer
from .chat.chat import Chat as Chat
from .chat.session import open_chat as open_chat
from .errors import BackendError as BackendError
from .errors import BundleError as BundleError
from .errors import ChatError as ChatError
from .errors import CheckpointError as CheckpointError
from .errors import ContextFullError as ContextFullError
from .errors import LlmconvError as LlmconvError
from .errors import LoweringError as LoweringError
from .errors import PassError as PassError
from .errors import PluginError as PluginError
from .errors import RecipeError as RecipeError
from .errors import ResourceError as ResourceError
from .planning.plan import Plan as Plan
from .planning.plan import plan as plan
from .plugins.hooks import hookimpl as hookimpl
from .plugins.registry import Registry as Registry
from .proof.proof import prove as prove
from .recipe.recipe import Recipe as Recipe
from .sources.sampling import Sampling as Sampling
from .tokenizer.tokenizer import Tokenizer as Tokenizer

__version__: str
